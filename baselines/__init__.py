"""The other systems of the paper's tables, to be trained and scored by the same scripts: docs/baselines.md."""

from baselines.baseline_rgmc import BaselineModel
from baselines.lp_musiccaps_rgmc import LPMusicCapsModel, LPMusicCapsProcessor
from baselines.ltu_style_rgmc import LTUStyleModel
from baselines.muscaps_rgmc import MusCapsModel, MusCapsProcessor
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor

# By `model_type` of the configuration.
BASELINES: dict[str, tuple[type[BaselineModel | RGMCModel], type[RGMCProcessor]]] = {
    "muscaps": (MusCapsModel, MusCapsProcessor),
    "lp-musiccaps": (LPMusicCapsModel, LPMusicCapsProcessor),
    "ltu-style": (LTUStyleModel, RGMCProcessor),
}
