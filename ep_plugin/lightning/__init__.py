"""Lightning: data and training modules."""
