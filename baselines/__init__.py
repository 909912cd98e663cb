"""The other systems of the paper's tables, to be trained and scored by the same scripts: docs/baselines.md."""

from baselines.baseline_rgmc import BaselineModel, BaselineProcessor
from baselines.lp_musiccaps_rgmc import LPMusicCapsModel, LPMusicCapsProcessor
from baselines.muscaps_rgmc import MusCapsModel, MusCapsProcessor

# By `model_type` of the configuration.
BASELINES: dict[str, tuple[type[BaselineModel], type[BaselineProcessor]]] = {
    "muscaps": (MusCapsModel, MusCapsProcessor),
    "lp-musiccaps": (LPMusicCapsModel, LPMusicCapsProcessor),
}
