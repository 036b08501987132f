//! The results as pictures: throughput and CPU as bars, latencies as curves over their percentiles; each as SVG and as PNG.
//!
//! Owns: colours, sizes, axes, file names. Never: measures, or makes medians.

use std::path::{Path, PathBuf};

use anyhow::Context;
use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

use super::table::{Bar, Curve, Spread, Table};

/// Everything is laid out in this many points across; a PNG has so many pixels for each.
const WIDTH: i32 = 960;
const PNG_SCALE: i32 = 2;
/// Left and right of the bars, for names and figures.
const NAMES: i32 = 230;
const FIGURES: i32 = 190;
const ROW: i32 = 26;
const HEAD: i32 = 64;
const FOOT: i32 = 26;
const CURVES_HEIGHT: i32 = 480;
/// Right of the curves, for their names.
const LEGEND: i32 = 250;

const INK: RGBColor = RGBColor(40, 40, 40);
const PALE: RGBColor = RGBColor(110, 110, 110);
const GRID: RGBColor = RGBColor(225, 225, 225);
const FONT: &str = "sans-serif";

/// What to draw.
enum Picture {
    Bars { unit: &'static str, digits: usize, bars: Vec<Bar> },
    Curves(Vec<Curve>),
}

/// Draws all that a table has to show.
pub(super) fn draw(table: &Table, out: &Path) -> anyhow::Result<()> {
    let font = register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
    font.map_err(|_| anyhow::anyhow!("the font for the plots cannot be read"))?;
    for workload in table.workloads() {
        let bars = |unit, digits, bars| Picture::Bars { unit, digits, bars };
        let pictures = if table.is_latency(&workload) {
            [
                ("ack", "from due to acknowledged", Picture::Curves(table.ack_curves(&workload))),
                ("end-to-end", "from due to read", Picture::Curves(table.read_curves(&workload))),
            ]
        } else {
            let (rates, cpu) = (table.rates(&workload), table.cpu(&workload));
            [
                ("throughput", "throughput", bars("MB/s", 0, rates)),
                ("cpu", "servers' CPU seconds for a million records", bars("s", 2, cpu)),
            ]
        };
        for (name, what, picture) in pictures {
            if !picture.is_empty() {
                let path = out.join(format!("{workload}-{name}"));
                picture.save(
                    &format!("{workload}: {what}"),
                    &table.conditions(&workload),
                    &path,
                )?;
            }
        }
    }
    Ok(())
}

impl Picture {
    fn is_empty(&self) -> bool {
        match self {
            Self::Bars { bars, .. } => bars.is_empty(),
            Self::Curves(curves) => curves.iter().all(|curve| curve.points.is_empty()),
        }
    }

    fn height(&self) -> i32 {
        match self {
            Self::Bars { bars, .. } => {
                HEAD + ROW * i32::try_from(bars.len()).unwrap_or(1_000) + FOOT
            }
            Self::Curves(_) => CURVES_HEIGHT,
        }
    }

    fn save(&self, title: &str, conditions: &str, path: &Path) -> anyhow::Result<()> {
        let size = |scale: i32| {
            let side = |points: i32| u32::try_from(points * scale).unwrap_or(1);
            (side(WIDTH), side(self.height()))
        };
        let file = |ending: &str| -> PathBuf {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            name.into()
        };
        let (svg, png) = (file(".svg"), file(".png"));
        let head = Head { title, conditions };
        let area = SVGBackend::new(&svg, size(1)).into_drawing_area();
        Canvas { area: &area, scale: 1 }.draw(self, &head)?;
        area.present().with_context(|| format!("cannot write {}", svg.display()))?;
        let area = BitMapBackend::new(&png, size(PNG_SCALE)).into_drawing_area();
        Canvas { area: &area, scale: PNG_SCALE }.draw(self, &head)?;
        area.present().with_context(|| format!("cannot write {}", png.display()))
    }
}

/// What stands above a picture.
struct Head<'a> {
    title: &'a str,
    conditions: &'a str,
}

/// Where is drawn, in points.
struct Canvas<'a, B: DrawingBackend> {
    area: &'a DrawingArea<B, Shift>,
    scale: i32,
}

impl<B: DrawingBackend> Canvas<'_, B>
where
    B::ErrorType: 'static,
{
    fn draw(&self, picture: &Picture, head: &Head<'_>) -> anyhow::Result<()> {
        self.area.fill(&WHITE)?;
        self.text(head.title, (16, 20), 17, INK, HPos::Left)?;
        self.text(head.conditions, (16, 42), 12, PALE, HPos::Left)?;
        match picture {
            Picture::Bars { unit, digits, bars } => self.bars(unit, *digits, bars),
            Picture::Curves(curves) => self.curves(curves),
        }
    }

    fn at(&self, (x, y): (i32, i32)) -> (i32, i32) {
        (x * self.scale, y * self.scale)
    }

    /// Text whose middle is at that height.
    fn text(
        &self,
        text: &str,
        (x, middle): (i32, i32),
        points: i32,
        colour: RGBColor,
        side: HPos,
    ) -> anyhow::Result<()> {
        let font = (FONT, f64::from(points * self.scale)).into_font();
        let style = TextStyle::from(font).color(&colour).pos(Pos::new(side, VPos::Center));
        // Above the middle of a line of text there is more room than below.
        let at = self.at((x, middle + points / 6));
        self.area.draw(&Text::new(text.to_owned(), at, style))?;
        Ok(())
    }

    fn line(
        &self,
        from: (i32, i32),
        to: (i32, i32),
        colour: RGBColor,
        width: i32,
    ) -> anyhow::Result<()> {
        let style = colour.stroke_width(u32::try_from(width * self.scale).unwrap_or(1));
        self.area.draw(&PathElement::new(vec![self.at(from), self.at(to)], style))?;
        Ok(())
    }

    fn bars(&self, unit: &str, digits: usize, bars: &[Bar]) -> anyhow::Result<()> {
        let most = bars.iter().map(|bar| bar.spread.greatest).fold(f64::MIN_POSITIVE, f64::max);
        let place = |value: f64| NAMES + whole(value / most * f64::from(WIDTH - NAMES - FIGURES));
        for (row, bar) in (0..).zip(bars) {
            let middle = HEAD + ROW * row + ROW / 2;
            let (top, bottom) = (middle - ROW / 3, middle + ROW / 3);
            let Spread { median, least, greatest } = bar.spread;
            let corners = [self.at((NAMES, top)), self.at((place(median), bottom))];
            self.area.draw(&Rectangle::new(corners, colour(&bar.side, bar.synced).filled()))?;
            // The spread.
            self.line((place(least), middle), (place(greatest), middle), INK, 1)?;
            for end in [least, greatest] {
                self.line((place(end), middle - 4), (place(end), middle + 4), INK, 1)?;
            }
            self.text(&bar.side, (NAMES - 10, middle), 13, INK, HPos::Right)?;
            let figures =
                format!("{median:.digits$} {unit} ({least:.digits$} to {greatest:.digits$})");
            self.text(&figures, (place(greatest.max(median)) + 8, middle), 12, INK, HPos::Left)?;
        }
        let bottom = self.area.dim_in_pixel().1;
        let foot = i32::try_from(bottom).unwrap_or(0) / self.scale - FOOT / 2;
        let note = "Pale: acknowledged before it was synced. The thin line is from the lowest to the highest round.";
        self.text(note, (16, foot), 11, PALE, HPos::Left)
    }

    fn curves(&self, curves: &[Curve]) -> anyhow::Result<()> {
        let all = || curves.iter().flat_map(|curve| &curve.points);
        let least = all().map(|point| point.1).fold(f64::INFINITY, f64::min).max(1.0);
        let most = all().map(|point| point.1).fold(least, f64::max);
        let nines_max = all().map(|point| nines(point.0)).fold(1.0, f64::max);
        // Whole powers of ten.
        let (low, high) = (least.log10().floor(), (most.log10() + 1e-9).ceil().max(1.0));
        let (left, right, top, bottom) = (74, WIDTH - LEGEND, HEAD + 8, CURVES_HEIGHT - 52);
        let x = |nine: f64| left + whole(nine / nines_max * f64::from(right - left));
        let y = |us: f64| {
            let part = (us.max(1.0).log10() - low) / (high - low).max(1.0);
            bottom - whole(part * f64::from(bottom - top))
        };
        let mut power = low;
        while power <= high {
            let us = 10_f64.powf(power);
            for step in [1.0, 2.0, 5.0] {
                if us * step <= 10_f64.powf(high) {
                    let height = y(us * step);
                    self.line((left, height), (right, height), GRID, 1)?;
                    self.text(&duration(us * step), (left - 8, height), 12, PALE, HPos::Right)?;
                }
            }
            power += 1.0;
        }
        for (nine, name) in [
            (0.0, "0 %"),
            (0.301, "50 %"),
            (1.0, "90 %"),
            (2.0, "99 %"),
            (3.0, "99.9 %"),
            (4.0, "99.99 %"),
        ] {
            if nine <= nines_max + 1e-9 {
                self.line((x(nine), top), (x(nine), bottom), GRID, 1)?;
                self.text(name, (x(nine), bottom + 16), 12, PALE, HPos::Center)?;
            }
        }
        let note = "How much of everything took at most so long. Dashed: acknowledged before it was synced.";
        self.text(note, (16, CURVES_HEIGHT - 14), 11, PALE, HPos::Left)?;
        // Names stand in the order of the curves' ends.
        let end = |curve: &Curve| curve.points.last().map_or(0.0, |point| point.1);
        let mut order: Vec<&Curve> = curves.iter().filter(|it| !it.points.is_empty()).collect();
        order.sort_by(|a, b| end(b).total_cmp(&end(a)));
        for (row, curve) in (0..).zip(order) {
            let points: Vec<(i32, i32)> =
                curve.points.iter().map(|it| self.at((x(nines(it.0)), y(it.1)))).collect();
            let middle = top + 10 + ROW * row;
            self.path(points, curve)?;
            self.path(vec![self.at((right + 14, middle)), self.at((right + 44, middle))], curve)?;
            self.text(&curve.side, (right + 52, middle), 13, INK, HPos::Left)?;
        }
        Ok(())
    }

    fn path(&self, points: Vec<(i32, i32)>, curve: &Curve) -> anyhow::Result<()> {
        let width = u32::try_from(2 * self.scale).unwrap_or(1);
        let style = colour(&curve.side, true).stroke_width(width);
        if curve.synced {
            self.area.draw(&PathElement::new(points, style))?;
        } else {
            let (dash, gap) = (6 * self.scale, 4 * self.scale);
            self.area.draw(&DashedPathElement::new(points, dash, gap, style))?;
        }
        Ok(())
    }
}

/// 0.9 is one nine, 0.99 two.
fn nines(part: f64) -> f64 {
    -(1.0 - part).max(1e-9).log10()
}

fn duration(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.0} s", us / 1e6),
        us if us >= 1e3 => format!("{:.0} ms", us / 1e3),
        us => format!("{us:.0} us"),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a place in a picture")]
fn whole(points: f64) -> i32 {
    points.round() as i32
}

/// By family; pale where an acknowledgement does not mean that it was synced.
fn colour(side: &str, synced: bool) -> RGBColor {
    let families = [
        ("highwater-1", RGBColor(20, 120, 200)),
        ("highwater-3", RGBColor(10, 60, 120)),
        ("nats-r1", RGBColor(245, 150, 30)),
        ("nats-r3", RGBColor(190, 90, 0)),
        ("redis", RGBColor(200, 40, 50)),
        ("rabbitmq-stream", RGBColor(120, 70, 160)),
        ("rabbitmq", RGBColor(60, 150, 80)),
        ("limit: bare tonic", RGBColor(165, 165, 165)),
        ("limit: loopback", RGBColor(190, 190, 190)),
        ("limit", RGBColor(120, 120, 120)),
    ];
    let found = families.iter().find(|(family, _)| side.starts_with(family));
    let full = found.map_or(INK, |(_, colour)| *colour);
    if synced || side.starts_with("limit") {
        return full;
    }
    let pale = |part: u8| part / 2 + 127;
    RGBColor(pale(full.0), pale(full.1), pale(full.2))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_picture_is_there_twice() {
        let dir = std::env::temp_dir().join(format!("bench-plots-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        draw(&Table::example(), &dir).unwrap();
        let mut names: Vec<String> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let svg = fs::read_to_string(dir.join("publish-1k-1p-throughput.svg")).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(
            names,
            [
                "latency-2000-ack.png",
                "latency-2000-ack.svg",
                "publish-1k-1p-cpu.png",
                "publish-1k-1p-cpu.svg",
                "publish-1k-1p-throughput.png",
                "publish-1k-1p-throughput.svg",
            ]
        );
        assert!(svg.contains("highwater-1 quorum-fsync") && svg.contains("MB/s"));
    }

    #[test]
    fn percentiles_are_spread_by_their_nines() {
        assert!((nines(0.999) - 3.0).abs() < 1e-9);
        assert_eq!((duration(50.0), duration(2000.0)), ("50 us".to_owned(), "2 ms".to_owned()));
    }
}
