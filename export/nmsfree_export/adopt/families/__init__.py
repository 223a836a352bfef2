"""Families of files: each module recognises those of one project by what they say of themselves."""

from nmsfree_export.adopt.families import (
    detr,
    huggingface,
    libreyolo,
    lightlytrain,
    paddle,
    ultralytics,
)

# The last one knows a file by its outputs alone.
FAMILIES = (
    ultralytics.recognize,
    libreyolo.recognize,
    lightlytrain.recognize,
    huggingface.recognize,
    paddle.recognize,
    detr.recognize,
)
