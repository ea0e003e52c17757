"""The formula that fills every weight, image, label and picture of the goldens, so that none of them is stored.

    fnv1a64(bytes)   h = 0xcbf29ce484222325; for each byte: h = (h ^ byte) * 0x100000001b3 mod 2^64
    mix(z)           SplitMix64's finaliser (src/rng.rs):
                     z = (z ^ z>>30) * 0xbf58476d1ce4e5b9; z = (z ^ z>>27) * 0x94d049bb133111eb; z ^ z>>31
    bits(name, i)    mix(fnv1a64(name) + (i + 1) * 0x9e3779b97f4a7c15)                            all mod 2^64
    unit(name, i)    (bits >> 40) / 2^24, in [0, 1), exact in f32
    signed(name, i)  2 * unit - 1, in [-1, 1), exact in f32

Element i counts in the tensor's own order: KCRS for convolutions, [classes, features], [channels]; NHWC for images.
A value is `scale * signed`, with the scale computed in f64, rounded once to f32, and one f32 product:

    convolution K,C,R,S   scale = f32(sqrt(6 / (K R S)))     He's fan-out variance, 2 / (K R S)
    gamma                 b * f32(0.75 + unit / 2), where b = f32(0.1) for a block's last batch norm (bn3), else 1
    beta                  b * f32(sign * (2 + unit)), sign = -1 where the lowest bit of bits(name, i) is 1, else +1
    fc.weight, fc.bias    scale = f32(1 / sqrt(features))
    running_mean, _var    0, 1
    images                u8 = bits >> 56; then ((x / 255) - mean) / std, every operation in f32, per channel
    labels                bits mod classes

README.md says why gammas and betas are so: inputs of ReLUs stay away from 0, where f32 programs differ.

A tensor t is recorded in a few numbers:

    sample   t[bits(name + "#sample", k) mod len] for k = 0..
    sketch   sum_i t[i] * (+1 if bit k of bits(name + "#sketch", i) is 0, else -1) for k = 0..
"""

import math

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def fnv1a64(name):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) % 2**64
    return h


def mix(z):
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def bits(name, count):
    """bits(name, 0..count) as u64."""
    index = np.arange(1, count + 1, dtype=np.uint64)
    return mix(np.uint64(fnv1a64(name)) + index * GOLDEN)


def unit(name, count):
    """f64, but every value is exact in f32."""
    return (bits(name, count) >> np.uint64(40)).astype(np.float64) / 2**24


def scaled(name, shape, scale):
    """f32 scale * (2 unit - 1): the f64 product is exact, so this rounds once, as an f32 product does."""
    signed = 2 * unit(name, math.prod(shape)) - 1
    return (np.float64(np.float32(scale)) * signed).astype(np.float32).reshape(shape)


def parameter(name, shape, features):
    """f32 values of one parameter; `features` is the classifier's input width."""
    if len(shape) == 4:
        k, _, r, s = shape
        return scaled(name, shape, math.sqrt(6 / (k * r * s)))
    if name.startswith("fc."):
        return scaled(name, shape, 1 / math.sqrt(features))
    draws = unit(name, shape[0])
    if name.endswith(".weight"):
        values = (0.75 + draws / 2).astype(np.float32)
    else:
        negative = bits(name, shape[0]) & np.uint64(1) == 1
        values = np.where(negative, -2.0 - draws, 2.0 + draws).astype(np.float32)
    return values * np.float32(0.1) if ".bn3." in name else values


def images_u8(name, n, size):
    return (bits(name, n * size * size * 3) >> np.uint64(56)).astype(np.uint8).reshape(n, size, size, 3)


def normalise(images):
    """u8 NHWC -> f32 NHWC, as torchvision's ToTensor and Normalize."""
    return (images.astype(np.float32) / np.float32(255) - MEAN) / STD


def labels(name, n, classes):
    return (bits(name, n) % np.uint64(classes)).astype(np.int64)


def sample(name, values, count):
    """`values`: f64, flat, in the tensor's own order."""
    return values[(bits(name + "#sample", count) % np.uint64(values.size)).astype(np.int64)].tolist()


def sketch(name, values, count):
    words = bits(name + "#sketch", values.size)
    total = values.sum()
    # sum of +-t = total - 2 * (sum of the negative ones)
    return [float(total - 2 * values[(words >> np.uint64(k)) & np.uint64(1) == 1].sum()) for k in range(count)]


def picture(name, height, width):
    """u8 HWC: a gradient with its own slope and wrap a channel, a checker of 8 px, and noise of 0..32.

    v = (x * (3 + 2 c) + y * (5 - c)) / 2 + 40 * ((x / 8 + y / 8) % 2) + 60 c + noise, in integers;
    noise = bits(name, (y * width + x) * 3 + c) >> 59; then folded: m = v % 510; m < 256 ? m : 510 - m.
    """
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    noise = (bits(name, height * width * 3) >> np.uint64(59)).astype(np.int64).reshape(height, width, 3)
    v = (x * (3 + 2 * c) + y * (5 - c)) // 2 + 40 * ((x // 8 + y // 8) % 2) + 60 * c + noise
    m = v % 510
    return np.where(m < 256, m, 510 - m).astype(np.uint8)
