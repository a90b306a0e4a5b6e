"""Closed forms: a model's sizes, memory and regions as functions of frames, height and width, from a few captures."""
