//! The result as a picture: how long which share of the requests took, and how many there were each
//! second.

use plotters::prelude::*;

use crate::adapters::config::BenchPlan;

use super::load::Measured;
use super::report::rate;
use super::workload::CALLS;

const SIZE: (u32, u32) = (900, 700);

/// Of the calls.
const COLORS: [RGBColor; 3] =
    [RGBColor(31, 119, 180), RGBColor(214, 39, 40), RGBColor(120, 120, 120)];

/// Points of a line of percentiles.
const POINTS: u32 = 200;

/// How many nines the percentiles go to.
const NINES: f64 = 4.0;

type Failed = Box<dyn std::error::Error>;

/// An SVG document.
///
/// # Errors
/// Whatever the library cannot draw.
pub(super) fn svg(plan: &BenchPlan, measured: &Measured) -> Result<String, Failed> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let title = format!("{}, {} connections, {}", plan.mix, plan.connections, rate(plan));
        let root = root.titled(&title, ("sans-serif", 20))?;
        let (above, below) = root.split_vertically(SIZE.1 * 3 / 5);
        percentiles(&above, measured)?;
        series(&below, measured)?;
        root.present()?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn framed<'a, 'b>(area: &'a Area<'b>, caption: &str) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut chart = ChartBuilder::on(area);
    chart.caption(caption, ("sans-serif", 15)).margin(8).margin_right(32);
    chart.x_label_area_size(28).y_label_area_size(64);
    chart
}

fn percentiles(area: &Area<'_>, measured: &Measured) -> Result<(), Failed> {
    let all = measured.tally.all();
    let (low, high) = (millis(all.min()).max(0.001), millis(all.max()) * 1.1);
    let mut chart = framed(area, "Time of a request by percentile")
        .build_cartesian_2d(0.0..NINES, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .x_labels(5)
        .x_label_formatter(&|nines| percentile(*nines))
        .y_label_formatter(&|ms| format!("{ms} ms"))
        .draw()?;
    for (index, call) in CALLS.into_iter().enumerate() {
        let times = measured.tally.of(call);
        if times.is_empty() {
            continue;
        }
        let color = COLORS.get(index).copied().unwrap_or(BLACK);
        let point = |step: u32| {
            let nines = NINES * f64::from(step) / f64::from(POINTS);
            (nines, millis(times.value_at_quantile(1.0 - 10_f64.powf(-nines))))
        };
        let line = LineSeries::new((0..=POINTS).map(point), color.stroke_width(2));
        chart
            .draw_series(line)?
            .label(call.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK.mix(0.3))
        .background_style(WHITE)
        .draw()?;
    Ok(())
}

fn series(area: &Area<'_>, measured: &Measured) -> Result<(), Failed> {
    let steps = &measured.series;
    let most = steps.iter().map(|step| step.per_second).fold(1.0, f64::max) * 1.1;
    let end = steps.last().map_or(1.0, |step| step.at.as_secs_f64()).max(0.1);
    let mut chart = framed(area, "Requests per second").build_cartesian_2d(0.0..end, 0.0..most)?;
    chart
        .configure_mesh()
        .x_label_formatter(&|seconds| format!("{seconds:.1} s"))
        .y_label_formatter(&|count| format!("{count:.0}"))
        .draw()?;
    let begins = std::iter::once(0.0).chain(steps.iter().map(|step| step.at.as_secs_f64()));
    let stairs = begins.zip(steps).flat_map(|(begin, step)| {
        [(begin, step.per_second), (step.at.as_secs_f64(), step.per_second)]
    });
    let color = COLORS.first().copied().unwrap_or(BLACK);
    chart.draw_series(LineSeries::new(stairs, color.stroke_width(2)))?;
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^52")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1e3
}

/// The name of the percentile with so many nines.
fn percentile(nines: f64) -> String {
    match nines {
        nines if nines < 0.5 => "0 %".to_owned(),
        nines => {
            let decimals = if nines < 2.5 { 0 } else { 1 + usize::from(nines > 3.5) };
            format!("{:.decimals$} %", 100.0 * (1.0 - 10_f64.powf(-nines)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::compose::bench::report::tests::{measured, plan};
    use crate::app::compose::bench::tally::Tally;

    #[test]
    fn a_plot_names_what_it_shows() {
        let svg = svg(&plan(), &measured()).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in ["99.9 %", "get", "add", "Requests per second", "get=50,add=50"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("remove"));
    }

    #[test]
    fn a_single_request_can_be_drawn() {
        let tally = Tally::new();
        let mut measured = Measured { tally, series: Vec::new(), ..measured() };
        let took = std::time::Duration::from_micros(1);
        measured.tally.record(
            crate::ports::OpKind::Get,
            super::super::connection::Reply::Success,
            took,
        );
        svg(&plan(), &measured).unwrap();
    }
}
