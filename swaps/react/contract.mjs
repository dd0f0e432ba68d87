// Write src/contract.d.ts from the backend's OpenAPI, which is read from standard input.
import { writeFileSync } from "node:fs";
import { json } from "node:stream/consumers";
import openapiTS, { astToString, COMMENT_HEADER, transformSchemaObject } from "openapi-typescript";

const types = await openapiTS(await json(process.stdin), {
  defaultNonNullable: false, // a field with a default may be left out
  // The data of an event is JSON in a string: its type is that of the JSON.
  transform: ({ contentSchema }, options) =>
    contentSchema && transformSchemaObject(contentSchema, options),
});
writeFileSync(new URL("src/contract.d.ts", import.meta.url), COMMENT_HEADER + astToString(types));
