"""A compiled module in the hands of its user: public functions, measuring, failing, giving back."""
