"""Daemons and origins as the policy tests have them: each test's part of a log has to be right, here above all."""

from tests.policy.conftest import ca, clean_logs, numbers, own, pytest_runtest_makereport, shared

__all__ = ["ca", "clean_logs", "numbers", "own", "pytest_runtest_makereport", "shared"]
