"""Label images made from boxes, points, shapes and scene classes."""
