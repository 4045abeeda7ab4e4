#!/usr/bin/env python3
"""Writes the small picture files that tests of damaged pictures start from, to tests/data/pictures.

    python3 -m venv venv && venv/bin/pip install pillow numpy
    venv/bin/python tools/picture_cases.py

Written with Pillow 13.0: other versions may give other bytes for the same pictures.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "pictures"


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    rgb = Image.new("RGB", (16, 12), (240, 230, 220))
    pen = ImageDraw.Draw(rgb)
    pen.ellipse((2, 2, 9, 9), fill=(200, 30, 40))
    pen.line((15, 0, 8, 11), fill=(20, 40, 200), width=2)
    clear = rgb.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(rgb.size))
    grey, two, palette = rgb.convert("L"), rgb.convert("1"), rgb.quantize(8)
    deep = Image.fromarray((np.asarray(grey, dtype=np.uint16) * 257))
    other = rgb.transpose(Image.Transpose.ROTATE_180)
    exif = Image.Exif()
    exif[0x0112] = 6

    def save(name, picture, **options):
        picture.save(OUT / name, **options)

    save("rgb.png", rgb)
    save("clear.png", clear)
    save("palette.png", palette, transparency=3)
    save("two.png", two)
    save("deep.png", deep)
    save("animated.png", rgb, save_all=True, append_images=[other], duration=50)
    save("plain.jpg", rgb, quality=80)
    save("progressive.jpg", rgb, quality=70, progressive=True, subsampling=2)
    save("grey.jpg", grey, quality=60)
    save("turned.jpg", rgb, quality=60, exif=exif)
    save("cmyk.jpg", rgb.convert("CMYK"), quality=70)
    save("restart.jpg", rgb, quality=60, restart_marker_blocks=1)
    save("palette.gif", palette)
    save("animated.gif", palette, save_all=True, append_images=[other.quantize(8)], duration=50, transparency=2, disposal=2)
    save("rgb.bmp", rgb)
    save("clear.bmp", clear)
    save("palette.bmp", palette)
    save("two.bmp", two)
    save("lossy.webp", rgb, quality=60)
    save("lossless.webp", rgb, lossless=True)
    save("clear.webp", clear, quality=60)
    save("animated.webp", clear, save_all=True, append_images=[other.convert("RGBA")], duration=50, lossless=True)
    save("rgb.tif", rgb)
    save("lzw.tif", rgb, compression="tiff_lzw")
    save("deflate.tif", clear, compression="tiff_adobe_deflate")
    save("bits.tif", grey, compression="packbits")
    save("deep.tif", deep)
    save("cmyk.tif", rgb.convert("CMYK"))
    save("fax.tif", two, compression="group4")
    # Sizes at the edges: one pixel, a strip, and more pixels than anybody has memory for in a few kilobytes.
    save("one.png", rgb.resize((1, 1)))
    save("strip.png", Image.new("L", (30000, 1), 90), optimize=True)
    Image.MAX_IMAGE_PIXELS = None
    save("bomb.png", Image.new("1", (12000, 12000)), optimize=True)


if __name__ == "__main__":
    main()
