"""
The scores that the paper reports in Tables 3, 4 and 5.

The paper computed CIDEr, BLEU@4, METEOR and ROUGE-L with a fork of the COCO caption code, and CLAP scores with "the
default checkpoint". It took the rows LP-MusicCaps, LTU and LTU-AS of Table 5 from the literature.
"""

import os
from pathlib import Path

SOURCE = "Srivatsan et al., Retrieval Guided Music Captioning via Multimodal Prefixes, IJCAI 2024"

# The corpus on whose test split each table was measured.
CORPORA = {"3": "Audiostock", "4": "Audiostock", "5": "MusicCaps"}

_SCORES = ("cider_d", "bleu_4", "meteor_1.5", "rouge_l", "clap_at", "clap_tt")
_COPY_FIRST = ("copy", "cider_d", "bleu_4", "meteor_1.5", "rouge_l")
_TABLES = {
    "3": {
        "Gold Caption": (1000, 100, 100, 100, 22.01, 100),
        "Random Caption": (2.81, 0.11, 1.39, 3.26, 10.86, 29.50),
        "Nearest Neighbor": (57.41, 5.93, 8.69, 16.79, 21.62, 44.22),
        "MusCaps": (26.98, 2.05, 6.62, 14.22, 24.52, 42.47),
        "RGMC (Audio Only)": (41.63, 3.08, 8.56, 16.78, 27.68, 45.61),
        "RGMC (Text Only)": (47.04, 3.65, 7.72, 15.15, 24.69, 43.63),
        "RGMC": (59.69, 4.96, 9.83, 19.15, 27.00, 46.36),
    },
    "4": {
        "Random": (3.97, 35.66, 2.70, 7.72, 15.32),
        "NN": (12.66, 59.69, 4.96, 9.83, 19.15),
        "Gold": (9.76, 231.28, 22.04, 20.25, 36.42),
    },
    "5": {
        "Gold Caption": (1000, 100, 100, 100, 34.02, 100),
        "Random Caption": (3.30, 3.21, 8.91, 17.47, 10.64, 33.19),
        "Nearest Neighbor": (8.07, 4.49, 11.27, 19.77, 30.97, 54.96),
        "MusCaps": (1.0, 2.1, 10.3, 19.6, 18.79, 38.95),
        "LP-MusicCaps Supervised": (None, 4.79, None, 19.22, None, None),
        "LTU": (None, None, 7.6, 8.5, None, None),
        "LTU-AS": (None, None, 6.0, 6.3, None, None),
        "RGMC": (8.76, 5.90, 11.85, 20.82, 30.34, 56.06),
        "RGMC (Transfer)": (11.25, 5.92, 11.83, 21.25, 32.38, 57.06),
    },
}

# `{table: {row: {metric: value}}}`; None where the paper has a "-".
REPORTED = {
    name: {title: dict(zip(_COPY_FIRST if name == "4" else _SCORES, values)) for title, values in rows.items()}
    for name, rows in _TABLES.items()
}


def is_corpus(dataset: str, corpus: str) -> bool:
    """
    Whether a dataset is a corpus of the paper, judged by its name alone.

    The name is the last part of a Hub id, the name of a folder or, for a file, the name of the folder that holds it;
    case does not matter. `data/audiostock`, `google/MusicCaps` and `data/musiccaps/metadata.parquet` are the paper's,
    `data/my_audiostock` is not.

    Args:
        dataset (`str`): Folder, file or Hub id.
        corpus (`str`): `"Audiostock"` or `"MusicCaps"`.
    """
    path = Path(os.path.abspath(dataset))  # not resolved: what counts is the name that the user gave
    return (path.parent if path.is_file() else path).name.lower() == corpus.lower()
