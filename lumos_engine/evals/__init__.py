"""Evaluation of the shipped world: a classifier that reads digits, a tracker that reads motions, and the scores
made of both.
"""
