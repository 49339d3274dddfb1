"""What people hit with programs of this kind, one test a case, named after what they saw."""
