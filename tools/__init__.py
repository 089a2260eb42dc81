"""The programs that contributors run beside the tests."""
