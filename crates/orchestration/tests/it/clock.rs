//! Schedules at the edges of days, windows and hours: the loop that fires in production, on PostgreSQL, by a clock that is set.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;
use voiceai_orchestration::schedule::Evaluator;
use voiceai_postgres::Tenure;
use voiceai_runtime::{Clock as _, ManualClock, Vitals};
use voiceai_testkit::wait_for;

use crate::agents::{Act, Agents};
use crate::schedules::{lead, schedule};
use crate::stage::{SOON, Stage};

/// A leader that looks at its schedules by a clock of the test's; nobody works on what it fires.
struct Day {
    stage: Stage,
    clock: Arc<ManualClock>,
    _leader: watch::Sender<Option<Tenure>>,
}

impl Day {
    async fn at(now: &str, columns: &str, values: &str) -> Self {
        let agents = Agents::start(|_, _| Act::Hang).await;
        let stage = Stage::new(&agents, &[]).await;
        stage.execute(&schedule(1, columns, values)).await;
        let clock = Arc::new(ManualClock::at(now.parse().unwrap()));
        let (leader, receiver) = watch::channel(Some(lead(&stage, "one").await));
        let evaluator = Evaluator::new(stage.pool.clone(), Duration::from_millis(50), stage.wakeups.clone())
            .by(Arc::clone(&clock) as Arc<_>);
        let pulse = Vitals::new().register("orchestration scheduler", Duration::from_secs(60));
        tokio::spawn(evaluator.run(receiver, stage.shutdown.stopping(), pulse));
        let day = Self { stage, clock, _leader: leader };
        day.is_looked_at().await;
        day
    }

    /// Waits until the schedule was decided about at the clock's time, and after that no more is to come of it.
    async fn is_looked_at(&self) {
        let now = self.clock.now();
        wait_for(SOON, format!("a decision of {now}"), async || {
            let row = self.state().await;
            let settled =
                row["at"] == now.to_string() && row["decision"] != "fired" && row["reason"] != "due";
            if settled { Ok(()) } else { Err(row.to_string()) }
        })
        .await;
    }

    /// Sets the clock, which only goes forward. What fired until then is over, so that it holds nothing back.
    async fn go_to(&self, time: &str) {
        self.stage
            .execute("UPDATE ops.orchestration_jobs SET status = 'completed', ended_at = created_at WHERE ended_at IS NULL")
            .await;
        let time: Timestamp = time.parse().unwrap();
        self.clock.advance(Duration::try_from(time.duration_since(self.clock.now())).unwrap());
        self.is_looked_at().await;
    }

    async fn state(&self) -> Value {
        let rows = self
            .stage
            .rows(
                "SELECT to_char(evaluated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS at, decision, reason, \
                     to_char(next_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS next \
                 FROM ops.orchestration_schedule_state",
            )
            .await;
        rows.into_iter().next().unwrap_or_default()
    }

    /// The slots that fired, in order.
    async fn fired(&self) -> Vec<String> {
        let rows = self
            .stage
            .rows("SELECT to_char(slot AT TIME ZONE 'UTC', 'MM-DD HH24:MI') AS slot FROM ops.orchestration_jobs ORDER BY created_at")
            .await;
        rows.iter().map(|row| row["slot"].as_str().unwrap().to_owned()).collect()
    }

    #[track_caller]
    fn says(state: &Value, reason: &str, next: &str) {
        assert!(state["reason"].as_str().unwrap().contains(reason), "{state}");
        assert_eq!(state["next"], json!(next), "{state}");
    }
}

/// Every hour, and no rule beside that.
const FREE: &str = ", schedule_type, timezone, min_interval_minutes";

#[tokio::test]
async fn an_hour_that_the_clock_shows_twice_fires_twice_and_one_that_it_skips_not_at_all() {
    let autumn = Day::at("2026-10-25T00:30:00Z", FREE, ", 'hourly', 'Europe/Berlin', 0").await;
    assert_eq!(autumn.fired().await, ["10-25 00:00"], "02:30 of summer");
    autumn.go_to("2026-10-25T00:59:59Z").await;
    assert_eq!(autumn.fired().await.len(), 1);
    autumn.go_to("2026-10-25T01:30:00Z").await;
    assert_eq!(autumn.fired().await, ["10-25 00:00", "10-25 01:00"], "02:30 of winter");

    let spring = Day::at("2026-03-29T00:59:59Z", FREE, ", 'hourly', 'Europe/Berlin', 0").await;
    spring.go_to("2026-03-29T01:00:00Z").await;
    spring.go_to("2026-03-29T01:59:00Z").await;
    assert_eq!(spring.fired().await, ["03-29 00:00", "03-29 01:00"], "after 01:59 comes 03:00");
}

#[tokio::test]
async fn a_daily_time_within_the_change_of_the_clock_fires_once_that_day() {
    let daily = ", schedule_type, cron_expression, timezone, min_interval_minutes";
    let half_past_two = ", 'custom', '30 2 * * *', 'Europe/Berlin', 0";
    let autumn = Day::at("2026-10-24T12:00:00Z", daily, half_past_two).await;
    for time in
        ["2026-10-25T00:29:59Z", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T06:00:00Z"]
    {
        autumn.go_to(time).await;
    }
    assert_eq!(autumn.fired().await, ["10-25 00:30"], "at the first 02:30");
    let spring = Day::at("2026-03-28T12:00:00Z", daily, half_past_two).await;
    for time in
        ["2026-03-29T00:59:59Z", "2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z", "2026-03-29T06:00:00Z"]
    {
        spring.go_to(time).await;
    }
    assert_eq!(spring.fired().await.len(), 1, "there was no 02:30, and the day is not left out");
}

#[tokio::test]
async fn the_daily_cap_ends_at_the_local_midnight() {
    let capped = ", schedule_type, timezone, min_interval_minutes, max_runs_per_day";
    let day = Day::at("2026-11-24T03:30:00Z", capped, ", 'hourly', 'America/New_York', 0, 1").await;
    assert_eq!(day.fired().await, ["11-24 03:00"], "22:30 there");
    // A new day of UTC was hours ago, and changes nothing.
    day.go_to("2026-11-24T04:59:59Z").await;
    Day::says(&day.state().await, "max_runs_per_day is 1", "2026-11-24T05:00:00Z");
    assert_eq!(day.fired().await.len(), 1);
    day.go_to("2026-11-24T05:00:00Z").await;
    assert_eq!(day.fired().await, ["11-24 03:00", "11-24 05:00"], "midnight there");
    // The day on which the clock goes back has 25 hours, all of which count.
    let long = Day::at("2026-11-01T04:00:00Z", capped, ", 'hourly', 'America/New_York', 0, 1").await;
    assert_eq!(long.fired().await.len(), 1, "midnight of summer");
    long.go_to("2026-11-02T04:59:59Z").await;
    Day::says(&long.state().await, "max_runs_per_day is 1", "2026-11-02T05:00:00Z");
    assert_eq!(long.fired().await.len(), 1);
    long.go_to("2026-11-02T05:00:00Z").await;
    assert_eq!(long.fired().await.len(), 2, "midnight of winter");
}

#[tokio::test]
async fn a_window_over_midnight_goes_by_the_clock_on_the_wall() {
    let window = ", schedule_type, timezone, min_interval_minutes, run_after_time, run_before_time";
    let night =
        Day::at("2026-10-24T19:59:59Z", window, ", 'hourly', 'Europe/Berlin', 0, '22:00', '02:30'").await;
    Day::says(&night.state().await, "outside the window from 22:00:00 to 02:30:00", "2026-10-24T20:00:00Z");
    night.go_to("2026-10-24T20:00:00Z").await;
    assert_eq!(night.fired().await, ["10-24 20:00"], "22:00");
    night.go_to("2026-10-24T22:00:00Z").await;
    assert_eq!(night.fired().await.last().unwrap(), "10-24 22:00", "midnight");
    night.go_to("2026-10-25T00:45:00Z").await;
    assert_eq!(night.fired().await.len(), 2, "02:45 of summer is outside");
    night.go_to("2026-10-25T01:15:00Z").await;
    assert_eq!(night.fired().await.last().unwrap(), "10-25 01:00", "02:15 of winter is inside");
    night.go_to("2026-10-25T02:00:00Z").await;
    assert_eq!(night.fired().await.len(), 3, "03:00 is outside");
}

#[tokio::test]
async fn interval_and_cooldown_end_to_the_second() {
    let day = Day::at(
        "2026-11-24T10:00:00Z",
        ", schedule_type, min_interval_minutes, cooldown_after_error_minutes",
        ", 'hourly', 90, 30",
    )
    .await;
    assert_eq!(day.fired().await, ["11-24 10:00"]);
    day.go_to("2026-11-24T11:29:59Z").await;
    Day::says(&day.state().await, "min_interval_minutes", "2026-11-24T11:30:00Z");
    day.go_to("2026-11-24T11:30:00Z").await;
    assert_eq!(day.fired().await, ["11-24 10:00", "11-24 11:00"]);
    day.stage
        .execute("UPDATE ops.orchestration_schedule_state SET last_failure_at = '2026-11-24T12:50:00Z'")
        .await;
    day.go_to("2026-11-24T13:19:59Z").await;
    Day::says(&day.state().await, "cooldown_after_error_minutes", "2026-11-24T13:20:00Z");
    day.go_to("2026-11-24T13:20:00Z").await;
    assert_eq!(day.fired().await.last().unwrap(), "11-24 13:00");
}

#[tokio::test]
async fn without_a_clock_of_its_own_the_loop_goes_by_the_databases() {
    let agents = Agents::start(|_, _| Act::Hang).await;
    let stage = Stage::new(&agents, &[]).await;
    stage.execute(&schedule(1, "", "")).await;
    let (_leader, receiver) = watch::channel(Some(lead(&stage, "one").await));
    let evaluator = Evaluator::new(stage.pool.clone(), Duration::from_millis(50), stage.wakeups.clone());
    let pulse = Vitals::new().register("orchestration scheduler", Duration::from_secs(60));
    tokio::spawn(evaluator.run(receiver, stage.shutdown.stopping(), pulse));
    stage
        .until(
            "its job, its firing and its record are of this minute",
            "SELECT now() - j.created_at < interval '1 minute' AS job, now() - s.last_fired_at < interval '1 minute' AS state, \
                 now() - t.last_run_at < interval '1 minute' AS record \
             FROM ops.orchestration_jobs j, ops.orchestration_schedule_state s, ops.agent_orchestration_schedules t",
            json!([{ "job": true, "state": true, "record": true }]),
        )
        .await;
}
