//! Curves as pictures.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::results::{Curve, Line, Machine};
use crate::side::Side;

const SIZE: (u32, u32) = (800, 460);

/// Draws a curve into an SVG file.
///
/// # Errors
/// When the file cannot be written.
pub fn draw(curve: &Curve, machine: &Machine, file: &Path) -> Result<()> {
    let picture = SVGBackend::new(file, SIZE).into_drawing_area();
    let drawn = fill(&picture, curve, machine).and_then(|()| Ok(picture.present()?));
    drawn.map_err(|why| anyhow!("draw {}: {why}", file.display()))
}

type Failed = Box<dyn std::error::Error>;

fn fill<D: DrawingBackend>(
    picture: &DrawingArea<D, plotters::coord::Shift>,
    curve: &Curve,
    machine: &Machine,
) -> Result<(), Failed>
where
    D::ErrorType: 'static,
{
    picture.fill(&WHITE)?;
    let (plot, foot) = picture.split_vertically(SIZE.1 - 22);
    let note = format!(
        "{}, {} CPUs; podwire {}; Go plugins {}; {}",
        machine.kernel, machine.cpus, machine.podwire, machine.go, machine.date
    );
    foot.draw(&Text::new(
        note,
        (12, 4),
        ("sans-serif", 11).into_font().color(&GREY),
    ))?;
    let (low, high) = times(curve);
    let most = curve
        .lines
        .iter()
        .flat_map(|line| &line.points)
        .map(|(count, _)| *count);
    let mut chart = ChartBuilder::on(&plot)
        .caption(&curve.title, ("sans-serif", 19))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(66)
        .build_cartesian_2d(0..most.max().unwrap_or(1), (low..high).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc(&curve.among)
        .y_desc(format!("median, {}, logarithmic", curve.unit))
        .x_label_formatter(&|count| thousands(*count))
        .y_label_formatter(&|time| format!("{time}"))
        .label_style(("sans-serif", 13))
        .draw()?;
    for line in &curve.lines {
        let (colour, width) = look(line);
        let points = || {
            line.points
                .iter()
                .map(|(count, time)| (*count, time.median))
        };
        let style = colour.stroke_width(width);
        chart
            .draw_series(LineSeries::new(points(), style).point_size(3))?
            .label(format!("{}{}", line.side.plain(), line.what))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(GREY)
        .label_font(("sans-serif", 13))
        .draw()?;
    Ok(())
}

const GREY: RGBColor = RGBColor(110, 110, 110);

/// A colour for a side; the last of two lines of a side is thin.
fn look(line: &Line) -> (RGBColor, u32) {
    let colour = match line.side {
        Side::Podwire => RGBColor(200, 60, 20),
        Side::Go => RGBColor(0, 125, 156),
        Side::Other => RGBColor(80, 60, 160),
        Side::Floor | Side::Batch => RGBColor(120, 120, 120),
    };
    let width = if line.what.contains("last") { 1 } else { 2 };
    (colour, width)
}

/// From a power of ten below all to room for the legend above.
fn times(curve: &Curve) -> (f64, f64) {
    let all = || {
        curve
            .lines
            .iter()
            .flat_map(|line| &line.points)
            .map(|(_, time)| time.median)
    };
    let low = all().fold(f64::INFINITY, f64::min).max(1e-3);
    let high = all().fold(low, f64::max);
    (
        10f64.powf(low.log10().floor()),
        10f64.powf(high.log10().ceil() + 0.7),
    )
}

/// `50,000` for 50000.
pub fn thousands(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn thousands_are_told_apart() {
        let texts: Vec<String> = [0, 999, 1000, 50_000, 1_234_567].map(thousands).into();
        assert_eq!(texts, ["0", "999", "1,000", "50,000", "1,234,567"]);
    }
}
