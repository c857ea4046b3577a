//! What a bare OCI runtime needs for the same process, where one is installed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::figures::Samples;

/// `runc run` of busybox's `true` from an unpacked directory; `None` where runc is not installed.
pub(crate) fn runc(archive: &Path, count: usize) -> Result<Option<Samples>> {
    if Command::new("runc").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Ok(None);
    }
    let bundle = Path::new("/run/bench-runc");
    fs::create_dir_all(bundle.join("rootfs"))?;
    // The archive holds one layer: the layout of `docker save`.
    let manifest = output(Command::new("tar").args(["-xOf"]).arg(archive).arg("manifest.json"))?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).context("the archive's manifest")?;
    let layer = manifest[0]["Layers"][0].as_str().context("the archive has no layer")?;
    let layer_tar = output(Command::new("tar").args(["-xOf"]).arg(archive).arg(layer))?;
    let file = bundle.join("layer.tar");
    fs::write(&file, layer_tar)?;
    output(Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(bundle.join("rootfs")))?;
    output(Command::new("runc").arg("spec").current_dir(bundle))?;
    let config = bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config)?)?;
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(["true"]);
    fs::write(&config, serde_json::to_vec(&spec)?)?;
    let samples = Samples::collect(count, || {
        let begun = Instant::now();
        output(Command::new("runc").args(["run", "bench"]).current_dir(bundle))?;
        Ok(begun.elapsed().as_secs_f64())
    })?;
    fs::remove_dir_all(bundle)?;
    Ok(Some(samples))
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}
