// Checks custom objects of Kubernetes against the schemas that are published on npm.
//
// In: a JSON array of objects. Out: a JSON array with the errors of each, an empty list for a right one.
// The published validators know values and what is required, but let unknown fields pass; the published
// types know the fields, and TypeScript finds the one that is not among them. So each object is asked both.

import ts from "typescript";
import * as cnpg from "@kubernetes-models/cloudnative-pg/postgresql.cnpg.io/v1";
import * as monitoring from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";

const PACKAGES = {
  "postgresql.cnpg.io/v1": ["@kubernetes-models/cloudnative-pg/postgresql.cnpg.io/v1", cnpg],
  "monitoring.coreos.com/v1": ["@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1", monitoring],
};

function model(object) {
  const [path, kinds] = PACKAGES[object.apiVersion] ?? [];
  const Model = kinds?.[object.kind];
  return Model ? { path, Model } : undefined;
}

function valueErrors(object, { Model }) {
  try {
    new Model(object).validate();
    return [];
  } catch (error) {
    return [error.message];
  }
}

// One line for each object, so that an error's line says whose it is.
function fieldErrors(objects, models) {
  const name = new URL("objects.ts", import.meta.url).pathname;
  const lines = objects.map((object, index) => {
    const type = models[index] ? `import("${models[index].path}").I${object.kind}` : "unknown";
    return `export const object${index}: ${type} = ${JSON.stringify(object)};`;
  });
  const options = {
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    target: ts.ScriptTarget.ES2022,
    strict: true,
    skipLibCheck: true,
    noEmit: true,
    types: [],
  };
  const host = ts.createCompilerHost(options);
  const { fileExists, readFile, getSourceFile } = host;
  const text = lines.join("\n");
  host.fileExists = (file) => file === name || fileExists(file);
  host.readFile = (file) => (file === name ? text : readFile(file));
  host.getSourceFile = (file, ...rest) =>
    file === name ? ts.createSourceFile(file, text, rest[0]) : getSourceFile(file, ...rest);
  const program = ts.createProgram([name], options, host);
  const errors = objects.map(() => []);
  for (const found of ts.getPreEmitDiagnostics(program)) {
    const message = ts.flattenDiagnosticMessageText(found.messageText, " ");
    if (found.file?.fileName !== name) throw new Error(message);
    errors[found.file.getLineAndCharacterOfPosition(found.start).line].push(message);
  }
  return errors;
}

const input = await new Response(process.stdin).text();
const objects = JSON.parse(input);
const models = objects.map(model);
const unknownFields = fieldErrors(objects, models);
const errors = objects.map((object, index) =>
  models[index]
    ? [...valueErrors(object, models[index]), ...unknownFields[index]]
    : [`no published schema for ${object.apiVersion} ${object.kind}`],
);
process.stdout.write(JSON.stringify(errors));
