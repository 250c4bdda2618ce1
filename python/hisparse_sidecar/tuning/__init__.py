"""Measure on this machine what the gate decides by."""
