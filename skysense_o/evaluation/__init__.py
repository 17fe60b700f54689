"""Segmentation metrics, their protocol and their report."""
