//! Pillow's way to HSV and back, as torchvision's `adjust_hue` goes it: f32 where Pillow stores, f64 between.

/// `hue_factor` of [-0.5, 0.5] as torchvision adds it to Pillow's hue: a share of 255, modulo 256.
pub fn shift(factor: f64) -> u8 {
    (factor * 255.0) as i32 as u8
}

/// Adds `shift` to every pixel's hue.
pub fn turn(shift: u8, pixels: &mut [u8]) {
    let pixels: &mut [[u8; 3]] = bytemuck::cast_slice_mut(pixels);
    for pixel in pixels {
        let [hue, saturation, value] = to_hsv(*pixel);
        *pixel = from_hsv([hue.wrapping_add(shift), saturation, value]);
    }
}

/// `rgb2hsv_row`.
fn to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    if most == least {
        return [0, 0, most];
    }
    let range = f32::from(most - least);
    let saturation = range / f32::from(most);
    let share = |c: u8| f32::from(most - c) / range;
    let (red, green, blue) = (share(r), share(g), share(b));
    let sixth = if r == most {
        blue - green
    } else if g == most {
        (2.0 + f64::from(red) - f64::from(blue)) as f32
    } else {
        (4.0 + f64::from(green) - f64::from(red)) as f32
    };
    // From 5/6 to 11/6: what `fmod` takes off is 1 or nothing.
    let turned = f64::from(sixth) / 6.0 + 1.0;
    let hue = (if turned >= 1.0 { turned - 1.0 } else { turned }) as f32;
    [(f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, most]
}

/// `hsv2rgb`.
fn from_hsv([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let sixths = f64::from(hue) * 6.0 / 255.0;
    let sixth = sixths as u8;
    let rest = f64::from((sixths - f64::from(sixth)) as f32);
    let saturation = f64::from((f64::from(saturation) / 255.0) as f32);
    // C's `round`: halves go up.
    let level = |share: f64| {
        let exact = f64::from(value) * share;
        let whole = exact as u8;
        whole + u8::from(exact - f64::from(whole) >= 0.5)
    };
    let p = level(1.0 - saturation);
    let q = level(1.0 - f64::from((saturation * rest) as f32));
    let t = level(1.0 - saturation * (1.0 - rest));
    match sixth % 6 {
        0 => [value, t, p],
        1 => [q, value, p],
        2 => [p, value, t],
        3 => [p, q, value],
        4 => [t, p, value],
        _ => [value, p, q],
    }
}
