"""Made-up people: sixty-four surnames by forty given names, so 2,560 before a full name repeats."""

from __future__ import annotations

SURNAMES = (
    "Abernathy", "Achterberg", "Adeyemi", "Albescu", "Almeida", "Andersson", "Aydin", "Baranowska",
    "Barbieri", "Bauer", "Bianchi", "Blomqvist", "Bonnet", "Brandt", "Carvalho", "Castellano",
    "Chevalier", "Costa", "Delacroix", "Dimitrov", "Dubois", "Eriksen", "Esposito", "Farkas",
    "Fernandez", "Fischer", "Fontaine", "Gallagher", "Garcia", "Georgiou", "Haddad", "Hansen",
    "Hoffmann", "Horvath", "Ibrahim", "Ivanova", "Jansen", "Jimenez", "Kaminska", "Keller", "Kowalski",
    "Kovac", "Laurent", "Lefevre", "Lindqvist", "Lombardi", "Maier", "Martinez", "Mehta", "Moretti",
    "Nakamura", "Novak", "Okafor", "Olsen", "Papadopoulou", "Petrov", "Ramirez", "Rossi", "Santos",
    "Schneider", "Silva", "Tanaka", "Visser", "Zimmermann",
)  # fmt: skip
GIVEN_NAMES = (
    "Ada", "Alma", "Anouk", "Anton", "Aram", "Bela", "Bruno", "Carla", "Celia", "Dario", "Edda", "Elif",
    "Emil", "Enzo", "Esra", "Felix", "Greta", "Hugo", "Ida", "Iris", "Ivo", "Jonas", "Kaja", "Lars",
    "Lena", "Leo", "Lia", "Luca", "Maja", "Malik", "Mira", "Nia", "Noah", "Olga", "Oscar", "Pia",
    "Rosa", "Samir", "Tove", "Yara",
)  # fmt: skip
