"""Crops of files of an hour: in a file of its own, so that it runs beside the other slow tests."""

import pytest
from encoders import COMMON, WITH_OPTIONS, readable
from test_seeking import check_table


@pytest.mark.slow
def test_crop_of_an_hour_lies_where_a_full_decode_has_it():
    assert check_table(readable(COMMON + WITH_OPTIONS), [3600]) >= 50
