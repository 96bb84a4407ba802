"""The words printed around a report's text, by language; a department can have others (``report_words``).

Each is a format of the values in braces. What a department's table leaves out, and languages that are not
here, are in English.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Final

from hounsfield.ris_plugin.languages import primary

__all__ = ["ENGLISH", "WORDS", "faults", "words"]

ENGLISH: Final[Mapping[str, str]] = {
    "title": "Diagnostic imaging report",
    "patient": "Patient",
    "born": "Born",
    "male": "male",
    "female": "female",
    "other": "other",
    "patient-id": "Patient ID",
    "accession": "Accession",
    "order": "Order",
    "ordered": "Ordered",
    "examined": "Examined",
    "referred-by": "Referred by",
    "modality": "Modality",
    "procedures": "Procedures",
    "indication": "Indication",
    "technique": "Technique",
    "comparison": "Comparison",
    "findings": "Findings",
    "impression": "Impression",
    "recommendation": "Recommendation",
    "addendum": "Addendum",
    "preliminary": "PRELIMINARY: not signed, may change",
    "across": "PRELIMINARY",
    "corrected": "CORRECTED: version {version}, replaces version {before} of {moment}",
    "added": "ADDENDUM: version {version}, adds to version {before} of {moment}",
    "replaces": "Replaces preliminary version {before} of {moment}",
    "reason": "Reason: {reason}",
    "critical": "Critical finding",
    "signed": "Signed electronically by {name}",
    "written": "Written by {name}",
    "unsigned": "Written by {name}, not signed",
    "report": "Report {number}, version {version}",
    "page": "Page {page} of {pages}",
    "confidential": "Confidential",
    "lacking": "{box} stands for a character that cannot be printed here; the structured report has it.",
}
WORDS: Final[Mapping[str, Mapping[str, str]]] = {
    "en": ENGLISH,
    "de": {
        "title": "Radiologischer Befund",
        "patient": "Patient/in",
        "born": "Geboren",
        "male": "männlich",
        "female": "weiblich",
        "other": "divers",
        "patient-id": "Patientennummer",
        "accession": "Untersuchungsnr.",
        "order": "Auftrag",
        "ordered": "Angefordert",
        "examined": "Untersucht",
        "referred-by": "Zuweisung",
        "modality": "Modalität",
        "procedures": "Untersuchungen",
        "indication": "Fragestellung",
        "technique": "Technik",
        "comparison": "Voruntersuchungen",
        "findings": "Befund",
        "impression": "Beurteilung",
        "recommendation": "Empfehlung",
        "addendum": "Nachtrag",
        "preliminary": "VORLÄUFIG: nicht freigegeben, kann sich ändern",
        "across": "VORLÄUFIG",
        "corrected": "KORRIGIERT: Version {version}, ersetzt Version {before} vom {moment}",
        "added": "NACHTRAG: Version {version}, ergänzt Version {before} vom {moment}",
        "replaces": "Ersetzt die vorläufige Version {before} vom {moment}",
        "reason": "Grund: {reason}",
        "critical": "Kritischer Befund",
        "signed": "Elektronisch freigegeben von {name}",
        "written": "Verfasst von {name}",
        "unsigned": "Verfasst von {name}, nicht freigegeben",
        "report": "Befund {number}, Version {version}",
        "page": "Seite {page} von {pages}",
        "confidential": "Vertraulich",
        "lacking": "{box} steht für ein Zeichen, das hier nicht gedruckt werden kann; der strukturierte "
        "Befund hat es.",
    },
    "fr": {
        "title": "Compte rendu d’imagerie",
        "patient": "Patient(e)",
        "born": "Né(e) le",
        "male": "masculin",
        "female": "féminin",
        "other": "autre",
        "patient-id": "N° de patient",
        "accession": "N° d’examen",
        "order": "Demande",
        "ordered": "Demandé le",
        "examined": "Examiné le",
        "referred-by": "Adressé par",
        "modality": "Modalité",
        "procedures": "Examens",
        "indication": "Indication",
        "technique": "Technique",
        "comparison": "Comparaison",
        "findings": "Résultats",
        "impression": "Conclusion",
        "recommendation": "Recommandation",
        "addendum": "Addendum",
        "preliminary": "PROVISOIRE : non signé, peut changer",
        "across": "PROVISOIRE",
        "corrected": "CORRIGÉ : version {version}, remplace la version {before} du {moment}",
        "added": "ADDENDUM : version {version}, complète la version {before} du {moment}",
        "replaces": "Remplace la version provisoire {before} du {moment}",
        "reason": "Motif : {reason}",
        "critical": "Résultat critique",
        "signed": "Signé électroniquement par {name}",
        "written": "Rédigé par {name}",
        "unsigned": "Rédigé par {name}, non signé",
        "report": "Compte rendu {number}, version {version}",
        "page": "Page {page} sur {pages}",
        "confidential": "Confidentiel",
        "lacking": "{box} remplace un caractère qui ne peut être imprimé ici ; le compte rendu "
        "structuré l’a.",
    },
    "es": {
        "title": "Informe de imagen diagnóstica",
        "patient": "Paciente",
        "born": "Nacimiento",
        "male": "masculino",
        "female": "femenino",
        "other": "otro",
        "patient-id": "N.º de paciente",
        "accession": "N.º de estudio",
        "order": "Solicitud",
        "ordered": "Solicitado",
        "examined": "Realizado",
        "referred-by": "Remitido por",
        "modality": "Modalidad",
        "procedures": "Exploraciones",
        "indication": "Indicación",
        "technique": "Técnica",
        "comparison": "Comparación",
        "findings": "Hallazgos",
        "impression": "Conclusión",
        "recommendation": "Recomendación",
        "addendum": "Adenda",
        "preliminary": "PRELIMINAR: sin firmar, puede cambiar",
        "across": "PRELIMINAR",
        "corrected": "CORREGIDO: versión {version}, sustituye a la versión {before} de {moment}",
        "added": "ADENDA: versión {version}, amplía la versión {before} de {moment}",
        "replaces": "Sustituye a la versión preliminar {before} de {moment}",
        "reason": "Motivo: {reason}",
        "critical": "Hallazgo crítico",
        "signed": "Firmado electrónicamente por {name}",
        "written": "Redactado por {name}",
        "unsigned": "Redactado por {name}, sin firmar",
        "report": "Informe {number}, versión {version}",
        "page": "Página {page} de {pages}",
        "confidential": "Confidencial",
        "lacking": "{box} sustituye a un carácter que no se puede imprimir aquí; el informe "
        "estructurado lo tiene.",
    },
    "it": {
        "title": "Referto di diagnostica per immagini",
        "patient": "Paziente",
        "born": "Data di nascita",
        "male": "maschile",
        "female": "femminile",
        "other": "altro",
        "patient-id": "N. paziente",
        "accession": "N. esame",
        "order": "Richiesta",
        "ordered": "Richiesto il",
        "examined": "Eseguito il",
        "referred-by": "Inviato da",
        "modality": "Modalità",
        "procedures": "Esami",
        "indication": "Indicazione",
        "technique": "Tecnica",
        "comparison": "Confronto",
        "findings": "Reperti",
        "impression": "Conclusioni",
        "recommendation": "Raccomandazioni",
        "addendum": "Addendum",
        "preliminary": "PROVVISORIO: non firmato, può cambiare",
        "across": "PROVVISORIO",
        "corrected": "CORRETTO: versione {version}, sostituisce la versione {before} del {moment}",
        "added": "ADDENDUM: versione {version}, integra la versione {before} del {moment}",
        "replaces": "Sostituisce la versione provvisoria {before} del {moment}",
        "reason": "Motivo: {reason}",
        "critical": "Reperto critico",
        "signed": "Firmato elettronicamente da {name}",
        "written": "Redatto da {name}",
        "unsigned": "Redatto da {name}, non firmato",
        "report": "Referto {number}, versione {version}",
        "page": "Pagina {page} di {pages}",
        "confidential": "Riservato",
        "lacking": "{box} sta per un carattere che qui non si può stampare; il referto strutturato "
        "lo contiene.",
    },
}


def words(tag: str, own: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    """The words for texts in a language; ``own``: the department's, by language."""
    of = primary(tag)
    return {**ENGLISH, **WORDS.get(of, {}), **own.get(of, {}), **own.get(tag, {})}


def faults(own: Mapping[str, str]) -> list[str]:
    """What cannot be in a department's words: names that are not here, and other values than ours."""
    found = []
    for name, text in own.items():
        if name not in ENGLISH:
            found.append(f"{name!r} is no word here; these are: {', '.join(ENGLISH)}")
        elif _values(text) != _values(ENGLISH[name]):
            found.append(f"{name!r} is to have {ENGLISH[name]!r}'s values in braces, each by its name alone")
    return found


def _values(text: str) -> set[str]:
    """The names of values; of a form that names them otherwise something else."""
    try:
        parts = [one for one in string.Formatter().parse(text) if one[1] is not None]
    except ValueError:
        return {"?"}
    return {f"{name}{form and '?'}{conversion or ''}" for _, name, form, conversion in parts}
