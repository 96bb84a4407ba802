"""The Modality Worklist: what modalities are to do, asked by C-FIND (PS3.4 K, IHE RAD-5)."""

from hounsfield.ris_plugin.modalities.worklist.service import parts

__all__ = ["parts"]
