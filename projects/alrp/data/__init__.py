"""Datasets and their preparation, on Detectron2's data API; imports no models."""
