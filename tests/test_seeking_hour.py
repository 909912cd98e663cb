"""Crops of files of an hour: in a file of its own, so that it runs beside the other slow tests."""

import warnings

import pytest
from encoders import COMMON, WITH_OPTIONS, encode, noise, readable
from test_seeking import check_table

from audio_rgmc import FROM_THE_START, load_audio


def is_sought(codec: str, muxer: str, rate: int, layout: str, options: dict) -> bool:
    """Whether a crop is decoded by itself; where what comes before it is, an hour shows no more than two minutes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_audio(encode(codec, muxer, rate, layout, noise(12.0, rate), options), 0, 10.0, rate)
    return not any(FROM_THE_START in str(warning.message) for warning in caught)


# FFmpeg thins out its index of a file after 43,690 packets: in mp3 of 8 kHz, those of 52 minutes.
@pytest.mark.slow
def test_crop_of_an_hour_lies_where_a_full_decode_has_it():
    assert check_table((row for row in readable(COMMON + WITH_OPTIONS) if is_sought(*row)), [3600]) >= 20
