"""Embed images with onnxruntime, NumPy and Pillow: python run_encoder.py encoder.onnx IMAGE..."""

import json
import sys

import numpy
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
shape, resize = json.loads(about["maestro.architecture"]), float(about["maestro.resize"])
height, width = shape["height"], shape["width"]
covered = [max(side, round(side * resize)) for side in (height, width)]
for path in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(path))
    image = image.convert("L" if shape["channels"] == 1 else "RGB")
    scale = max(covered[0] / image.height, covered[1] / image.width)
    tall, wide = round(image.height * scale), round(image.width * scale)
    image = image.resize((max(wide, covered[1]), max(tall, covered[0])), Image.Resampling.BICUBIC)
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    pixels = numpy.asarray(image.crop((left, top, left + width, top + height)))
    batch = pixels.reshape(1, height, width, -1).transpose(0, 3, 1, 2)  # N, C, H, W, uint8
    cls, mean = session.run(["cls", "mean"], {"images": numpy.ascontiguousarray(batch)})
    print(json.dumps({"image": path, "cls": cls[0].tolist(), "mean": mean[0].tolist()}))
