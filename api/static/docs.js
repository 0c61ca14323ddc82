"use strict";

// The examples are filled with the newest things of this installation, so that they run as they stand.
const NEWEST = {
  job_id: "jobs?limit=1",
  synthetic_set_id: "synthetic-sets?limit=1",
};

async function newest(path) {
  const answer = await fetch(path);
  if (!answer.ok) return undefined;
  const { data } = await answer.json();
  return data[0];
}

function operations(schema) {
  return Object.values(schema.paths).flatMap((item) => Object.values(item));
}

function fill(schema, parameter, value) {
  for (const operation of operations(schema)) {
    for (const one of operation.parameters ?? []) {
      if (one.name === parameter) one.example = value;
    }
  }
}

async function fillExamples(schema) {
  fill(schema, "dataset", "digits-train");
  for (const [parameter, path] of Object.entries(NEWEST)) {
    const found = await newest(path);
    if (found) fill(schema, parameter, found.id);
    if (found && parameter === "synthetic_set_id") {
      const examples = schema.paths["/evaluate"].post.requestBody.content["application/json"].examples;
      for (const example of Object.values(examples)) example.value.synthetic_set = found.id;
    }
    if (found?.results?.report) fill(schema, "report_id", found.results.report);
  }
}

async function start() {
  const answer = await fetch("openapi.json");
  const schema = await answer.json();
  await fillExamples(schema).catch((error) => console.warn("examples stay as they are:", error));
  SwaggerUIBundle({
    spec: schema,
    dom_id: "#swagger-ui",
    deepLinking: true,
    tryItOutEnabled: true,
    displayRequestDuration: true,
    defaultModelsExpandDepth: -1,
    docExpansion: "list",
    validatorUrl: null,
  });
}

start();
