"""
Measures how fast a library is captioned: `caption.py` against captioning one file after the other.

    python -m benchmarks.captioning --model outputs/demo --music my_music

prints a table and writes `benchmarks/results/captioning.json`. (a) is the loop that captioners come with: load the whole
file, resample it, cut out the middle 10 s, compute the log-mel, and generate, file by file in one process. (b) is
`caption.py`, as a new process that also loads the model; (c) is its `Captioner` in a process that has loaded it. (a) and
(c) have loaded the model, too. All use the same checkpoint, generation settings and number of threads, and take turns;
the median of the rounds counts. Captions must be equal.

The folder should hold music as people have it: whole tracks, and enough of them that starting up does not count
(`--copies` names each file several times).
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
import soxr
import torch

from captions.captioner import Captioner
from captions.inputs import find_inputs
from clips.options import ROOT, available_cpus
from modeling_rgmc import RGMCModel
from pipeline_rgmc import MusicCaptioningPipeline
from processing_rgmc import RGMCProcessor

RESULTS = Path(__file__).parent / "results" / "captioning.json"
