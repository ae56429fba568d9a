import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("tests.support.kill_points")  # what it asserts is told as that of tests is
pytest_plugins = ["tests.support.plugin"]

# How long an example takes says nothing on a machine that others use, too.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
