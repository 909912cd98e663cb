"""How threads wait: scripts import this first, because torch reads it when it is loaded."""

import os

# On a busy CPU, threads that spin while they wait for each other make a step many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
