//! What `collimate bench` prints: one record per figure, as a line of JSON or
//! as a row of a table.

use serde::{Deserialize, Serialize};

use super::measure::Round;

/// One figure beside its reference.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// What was measured.
    pub metric: String,
    /// How far it went: `in_worker`, `cross_worker`, `cross_process`, `tcp` or
    /// `simulated`.
    pub path: String,
    /// Which way of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Size of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Ranks of the job.
    pub ranks: u32,
    /// Workers of each rank.
    pub workers: u32,
    /// The figure.
    #[serde(flatten)]
    pub figure: Figure,
    /// Whether the bytes were read where their owner had put them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_place: Option<bool>,
    /// What it is compared with.
    pub reference: Reference,
    /// Our time per operation over the reference's: lower is better, for rates
    /// too.
    pub ratio: f64,
    /// What it should reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
}

/// A measurement in its units; what does not apply is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Median time of an operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_ns: Option<f64>,
    /// 99th percentile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_ns: Option<f64>,
    /// The longest of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ns: Option<f64>,
    /// Operations per second and worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_s: Option<f64>,
    /// Bandwidth at the median.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gib_s: Option<f64>,
    /// Percent of a core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
    /// Resident memory of all ranks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mib: Option<f64>,
}

/// What a figure is compared with, taken in the same run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reference {
    /// What it is.
    pub name: String,
    /// Its figure.
    #[serde(flatten)]
    pub figure: Figure,
}

/// Upper bounds of a record's fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Of `ratio`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Of `p50_ns`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_ns: Option<f64>,
    /// Of `max_ns`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ns: Option<f64>,
    /// Of `percent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
}

impl Record {
    /// One line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("text and numbers")
    }

    /// Whether every bound of the target holds; `None` without a target.
    pub fn meets_target(&self) -> Option<bool> {
        let target = self.target?;
        let holds = |figure: Option<f64>, bound: Option<f64>| bound.is_none_or(|b| figure.is_some_and(|f| f <= b));
        Some(
            holds(Some(self.ratio), target.ratio)
                && holds(self.figure.p50_ns, target.p50_ns)
                && holds(self.figure.max_ns, target.max_ns)
                && holds(self.figure.percent, target.percent),
        )
    }

    fn cells(&self) -> [String; 7] {
        let mut what = format!("{} {}", self.metric, self.path);
        if let Some(variant) = &self.variant {
            what += &format!(" ({variant})");
        }
        let verdict = match self.meets_target() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        let target = self.target.map(|t| t.to_string()).unwrap_or_default();
        [
            what,
            self.bytes.map(size).unwrap_or_default(),
            self.figure.main(),
            self.figure.p99_ns.map(time).unwrap_or_default(),
            format!("{} {}", self.reference.figure.main(), self.reference.name),
            ratio(self.ratio),
            format!("{target} {verdict}").trim().to_string(),
        ]
    }
}

/// The records as rows under a heading.
pub fn table(records: &[Record]) -> String {
    let heading = ["metric and path", "size", "ours", "p99", "reference", "ratio", "target"].map(String::from);
    let rows: Vec<_> = std::iter::once(heading).chain(records.iter().map(Record::cells)).collect();
    let widths: Vec<usize> =
        (0..7).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

impl Figure {
    /// A time and the bandwidth that it means for `bytes`.
    pub fn transfer(p50_ns: f64, p99_ns: f64, bytes: u64) -> Figure {
        let gib_s = (p50_ns > 0.0).then(|| bytes as f64 / (1u64 << 30) as f64 / (p50_ns * 1e-9));
        Figure { p50_ns: Some(p50_ns), p99_ns: Some(p99_ns), gib_s, ..Figure::default() }
    }

    /// A time.
    pub fn percentiles(round: Round) -> Figure {
        Figure { p50_ns: Some(round.p50_ns), p99_ns: Some(round.p99_ns), ..Figure::default() }
    }

    /// A rate.
    pub fn rate(per_s: f64) -> Figure {
        Figure { per_s: Some(per_s), ..Figure::default() }
    }

    fn main(&self) -> String {
        match self {
            Figure { p50_ns: Some(ns), gib_s: Some(gib_s), .. } => format!("{} ({gib_s:.2} GiB/s)", time(*ns)),
            Figure { p50_ns: Some(ns), max_ns: Some(most), .. } => format!("{} (longest {})", time(*ns), time(*most)),
            Figure { p50_ns: Some(ns), .. } => time(*ns),
            Figure { mib: Some(mib), .. } => format!("{mib:.1} MiB"),
            Figure { per_s: Some(rate), .. } if *rate >= 1e6 => format!("{:.2} M/s", rate / 1e6),
            Figure { per_s: Some(rate), .. } => format!("{rate:.0} /s"),
            Figure { percent: Some(percent), .. } => format!("{percent:.2} %"),
            _ => String::new(),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bounds = [
            self.ratio.map(|r| format!("{}x", ratio(r))),
            self.p50_ns.map(time),
            self.max_ns.map(|ns| format!("{} at most", time(ns))),
            self.percent.map(|p| format!("{p} %")),
        ];
        write!(f, "<= {}", bounds.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

fn time(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.1} ns"),
        ns if ns < 1e6 => format!("{:.2} us", ns / 1e3),
        ns => format!("{:.2} ms", ns / 1e6),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 20 => format!("{} MiB", b >> 20),
        b if b >= 1 << 10 => format!("{} KiB", b >> 10),
        b => format!("{b} B"),
    }
}

fn ratio(ratio: f64) -> String {
    if ratio < 0.01 { format!("{ratio:.0e}") } else { format!("{ratio:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(ratio: f64, p50_ns: f64) -> Record {
        Record {
            metric: "task_round_trip".into(),
            path: "tcp".into(),
            variant: None,
            bytes: None,
            ranks: 2,
            workers: 1,
            figure: Figure { p50_ns: Some(p50_ns), ..Figure::default() },
            in_place: None,
            reference: Reference { name: "bare".into(), figure: Figure { p50_ns: Some(1.0), ..Figure::default() } },
            ratio,
            target: Some(Target { ratio: Some(2.0), p50_ns: Some(100.0), ..Target::default() }),
        }
    }

    #[test]
    fn a_target_is_met_when_every_bound_holds() {
        assert_eq!(record(1.5, 90.0).meets_target(), Some(true));
        assert_eq!(record(2.5, 90.0).meets_target(), Some(false));
        assert_eq!(record(1.5, 110.0).meets_target(), Some(false));
        assert_eq!(Record { target: None, ..record(9.0, 9.0) }.meets_target(), None);
    }

    #[test]
    fn a_record_survives_its_json() {
        let line = record(1.5, 90.0).to_json();
        let back: Record = serde_json::from_str(&line).unwrap();
        assert_eq!(back.to_json(), line);
        assert!(line.contains(r#""reference":{"name":"bare","p50_ns":1.0}"#), "{line}");
        assert!(!line.contains("null"), "{line}");
    }

    #[test]
    fn columns_line_up() {
        let text = table(&[record(1.5, 90.0), record(2.5, 12_345.0)]);
        let at: Vec<_> = text.lines().map(|l| l.find("<= ").or(l.find("target"))).collect();
        assert!(at.iter().all(|a| a.is_some() && *a == at[0]), "{text}");
    }
}
