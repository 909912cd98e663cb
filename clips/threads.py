"""Sets how idle threads wait. Scripts import this first, because torch reads the setting when it is loaded."""

import os

# On a busy CPU, threads that spin while waiting for each other make a step many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
