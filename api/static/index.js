"use strict";

function cell(row, content, kind) {
  const td = row.insertCell();
  td.append(content);
  if (kind) td.className = kind;
}

function bar(progress) {
  const element = document.createElement("progress");
  element.max = Math.max(progress.total, 1);
  element.value = progress.done;
  element.title = `${progress.done} of ${progress.total} ${progress.unit}`;
  return element;
}

async function refresh() {
  const trouble = document.getElementById("trouble");
  try {
    const answer = await fetch("jobs?limit=20");
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.detail);
    const table = document.querySelector("table");
    table.hidden = !body.data.length;
    document.getElementById("none").hidden = body.data.length > 0;
    const rows = document.createElement("tbody");
    for (const job of body.data) {
      const row = rows.insertRow();
      const link = document.createElement("a");
      link.href = `jobs/${job.id}`;
      link.textContent = job.id;
      cell(row, link);
      cell(row, job.kind);
      cell(row, job.state, job.state);
      cell(row, job.phase);
      cell(row, bar(job.progress));
      cell(row, new Date(job.created_at).toLocaleString());
    }
    table.tBodies[0].replaceWith(rows);
    trouble.textContent = "";
  } catch (error) {
    trouble.textContent = `The list cannot be refreshed: ${error.message}`;
  }
  setTimeout(refresh, 2000);
}

refresh();
