"""Hypothesis tries the same examples in every run, and no machine is too slow for them.

``pytest --hypothesis-profile=search`` tries others.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("tests", settings.get_profile("search"), derandomize=True)
settings.load_profile("tests")
