//! Off switches: by hand, by an unconfirmed trial, by an agent that is gone. And what goes on without an agent.

use std::fs;

use anyhow::{Result, ensure};
use lb_tests::{clients, is_root, login::Login, netns::until};

use super::{passes, serves, stage, status, wait_for_bypass};

#[test]
fn an_off_switch_lets_everything_pass_and_keeps_the_tables() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = stage("")?;
    let mut login = Login::open(&stage.topology)?;
    stage.balancer.cli(&["bypass", "on"])?;
    passes(&stage)?;
    let shown = stage.balancer.cli(&["status"])?;
    ensure!(shown.contains("bypass on"), "{shown}");
    // It outlives the agent, whatever the end of that.
    stage.balancer.kill()?;
    passes(&stage)?;
    // Without an agent the maps are told.
    let said = stage.balancer.cli(&["bypass", "off"])?;
    ensure!(
        said == "bypass off, by the maps alone: no agent runs\n",
        "{said}"
    );
    serves(&stage)?;
    stage.balancer.cli(&["bypass", "on"])?;
    passes(&stage)?;
    stage.balancer.run()?;
    passes(&stage)?;
    // And maps of another size.
    let text = format!("limits: {{flows: 8192}}\n{}", stage.configuration);
    stage.balancer.stop()?;
    stage.balancer.write(&text)?;
    stage.balancer.run()?;
    passes(&stage)?;
    login.check()?;
    let backends = stage.balancer.backends("http4")?;
    ensure!(backends.iter().all(|row| row.slots > 0), "{backends:?}");
    stage.balancer.cli(&["bypass", "off"])?;
    serves(&stage)?;
    login.check()
}

#[test]
fn a_trial_ends_unless_it_is_confirmed() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = stage("")?;
    let mut login = Login::open(&stage.topology)?;
    stage.balancer.stop()?;
    let ((), rounds) = login.during(|| {
        stage.balancer.run_with(&["--try", "3s"])?;
        wait_for_bypass(&stage, "unconfirmed")?;
        passes(&stage)
    })?;
    ensure!(rounds > 0, "no session was used");
    let shown = stage.balancer.cli(&["status"])?;
    ensure!(
        shown.contains("bypass on (the trial was not confirmed)"),
        "{shown}"
    );
    let late = stage.balancer.output(&["confirm"])?;
    let said = String::from_utf8(late.stderr)?;
    ensure!(
        late.status.code() == Some(1) && said.contains("millrace bypass off"),
        "{said}"
    );
    passes(&stage)?;
    stage.balancer.cli(&["bypass", "off"])?;
    serves(&stage)
}

#[test]
fn a_confirmed_trial_goes_on() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = stage("")?;
    stage.balancer.stop()?;
    stage.balancer.run_with(&["--try", "1m"])?;
    let shown = stage.balancer.cli(&["status"])?;
    ensure!(shown.contains("bypass off (on trial for"), "{shown}");
    let confirmed = stage.balancer.cli(&["confirm"])?;
    ensure!(confirmed.contains("it goes on"), "{confirmed}");
    let again = stage.balancer.cli(&["confirm"])?;
    ensure!(again.contains("nothing to confirm"), "{again}");
    let status = status(&stage)?;
    ensure!(
        status["trialSeconds"].is_null() && status["bypass"] == false,
        "{status}"
    );
    // What the maps say without an agent is what holds.
    stage.balancer.kill()?;
    let status = super::status(&stage)?;
    ensure!(status["trialSeconds"].is_null(), "{status}");
    serves(&stage)
}

#[test]
fn a_trial_ends_without_its_agent_too() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = stage("")?;
    stage.balancer.stop()?;
    stage.balancer.run_with(&["--try", "5s"])?;
    stage.balancer.kill()?;
    wait_for_bypass(&stage, "unconfirmed")?;
    passes(&stage)?;
    // A start without a trial takes over for good.
    stage.balancer.run()?;
    serves(&stage)
}

#[test]
fn a_crash_loop_does_not_put_off_the_end_of_its_trial() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = stage("")?;
    stage.balancer.stop()?;
    let run = ["--try", "10s"];
    stage.balancer.run_with(&run)?;
    // As a service manager would, with the same command line.
    until(clients::PATIENCE * 3, || {
        stage.balancer.kill()?;
        stage.balancer.run_with(&run)?;
        let status = status(&stage)?;
        ensure!(status["bypassReason"] == "unconfirmed", "{status}");
        Ok(())
    })?;
    passes(&stage)?;
    // What went well once need not go well again,
    stage.balancer.cli(&["bypass", "off"])?;
    stage.balancer.kill()?;
    stage.balancer.run_with(&run)?;
    let after = status(&stage)?;
    ensure!(after["trialSeconds"].is_null(), "{after}");
    serves(&stage)?;
    // and who ends well begins anew.
    stage.balancer.stop()?;
    stage.balancer.run_with(&["--try", "1m"])?;
    let anew = status(&stage)?;
    ensure!(anew["trialSeconds"].is_number(), "{anew}");
    serves(&stage)
}

#[test]
fn no_stale_forwarding_for_ever() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = stage("withoutAgent: {after: 10s}\n")?;
    let mut login = Login::open(&stage.topology)?;
    serves(&stage)?;
    stage.balancer.kill()?;
    serves(&stage)?;
    wait_for_bypass(&stage, "silent")?;
    passes(&stage)?;
    let shown = stage.balancer.output(&["status"])?;
    let shown = String::from_utf8(shown.stdout)?;
    ensure!(
        shown.contains("agent down  bypass on (the agent is silent for"),
        "{shown}"
    );
    println!("{shown}");
    login.check()?;
    stage.balancer.run()?;
    serves(&stage)?;
    let status = status(&stage)?;
    ensure!(status["bypass"] == false, "{status}");
    // Longer than the term with an agent that lives.
    let begin = std::time::Instant::now();
    until(clients::PATIENCE * 2, || {
        serves(&stage)?;
        ensure!(begin.elapsed().as_secs() >= 11, "not yet");
        Ok(())
    })
}

#[test]
fn sigterm_never_detaches() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = stage("")?;
    stage.balancer.stop()?;
    serves(&stage)
}

#[test]
fn a_control_plane_outage_is_never_a_data_plane_outage() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = stage("")?;
    fs::remove_file(stage.balancer.file())?;
    until(clients::PATIENCE, || {
        let status = status(&stage)?;
        ensure!(status["sources"][0]["state"] == "stale", "{status}");
        Ok(())
    })?;
    serves(&stage)?;
    stage.balancer.write("\0 no: [configuration")?;
    serves(&stage)?;
    // An agent that cannot start with it changes nothing.
    stage.balancer.kill()?;
    let (code, said) = stage.balancer.refusal()?;
    ensure!(code == Some(2), "{said}");
    serves(&stage)
}
