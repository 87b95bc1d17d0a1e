// Says what official tools find wrong with a document, one finding a line; nothing: it is right.
//
//   asyncapi FILE   the parser of the AsyncAPI initiative
//   openapi FILE    the schemas that the OpenAPI initiative publishes for its documents, as JSON
//   patterns FILE   ECMA-262 itself: FILE is a JSON list of [pattern, text, whether it matches]
//
// It is run from the directory of the packages (`make node-packages`), from where an evaluated module imports.
import { readFileSync } from "node:fs";

const [kind, file] = process.argv.slice(-2);
const text = readFileSync(file, "utf8");

const judges = {
  async asyncapi() {
    const { Parser, DiagnosticSeverity } = (await import("@asyncapi/parser")).default;
    const { document, diagnostics } = await new Parser().parse(text);
    const findings = diagnostics
      .filter((found) => found.severity <= 1) // errors and warnings; a newer version of AsyncAPI is but a hint
      .map((found) => `${found.path.join("/")}: ${found.message}`);
    return document === undefined && findings.length === 0 ? ["it cannot be read"] : findings;
  },

  async openapi() {
    const { validate } = await import("@hyperjump/json-schema/openapi-3-1");
    const schema = "https://spec.openapis.org/oas/3.1/schema-base";
    const { valid, errors } = await validate(schema, JSON.parse(text), "BASIC");
    return valid ? [] : errors.map((found) => `${found.instanceLocation}: ${found.absoluteKeywordLocation}`);
  },

  async patterns() {
    return JSON.parse(text).flatMap(([pattern, tried, expected]) => {
      try {
        const matches = new RegExp(pattern, "u").test(tried);
        return matches === expected ? [] : [`${pattern}: ${JSON.stringify(tried)} matches: ${matches}`];
      } catch (error) {
        return [`${pattern}: ${error.message}`];
      }
    });
  },
};

for (const finding of await judges[kind]()) console.log(finding);
