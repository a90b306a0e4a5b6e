"""Tests on an accelerator that is emulated on the CPU: a pytest session of their own, `make test-emulated`."""
