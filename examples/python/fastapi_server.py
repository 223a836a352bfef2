"""Detections by HTTP with FastAPI: python fastapi_server.py MODEL [PORT]

pip install fastapi uvicorn python-multipart; then curl -F picture=@street.jpg localhost:8000/detect

`nmsfree serve` does more: batches, limits, metrics, a check of the engine every minute.
"""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, UploadFile

from nmsfree import Detector, InputError


def main(model: str, port: str = "8000") -> None:
    app, detector = FastAPI(), Detector(model)

    # No `async`: FastAPI calls it in several threads, and they share the detector.
    @app.post("/detect")
    def detect(picture: UploadFile) -> list[dict[str, Any]]:
        try:
            found = detector(picture.file.read())
        except InputError as error:  # no picture, or one that is too large
            raise HTTPException(400, str(error)) from None
        return [{"box": d.box, "score": d.confidence, "class": d.class_name} for d in found]

    uvicorn.run(app, port=int(port), log_level="warning")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
