"""Detection datasets: COCO, YOLO and Pascal VOC folders, checking them, and the digits scenes."""
