"""Decode steps of whole layers through the pipeline, by stage."""
