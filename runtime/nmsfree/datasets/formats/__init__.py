"""How datasets lie on the disk: COCO, YOLO and Pascal VOC."""
