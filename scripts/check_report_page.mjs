// Opens a report in headless Chromium as people would: on a phone and on a desk, light and dark.
//
//     npm install --prefix DIR puppeteer-core@24.43.1 axe-core@4.14.1
//     NODE_PATH=DIR/node_modules node scripts/check_report_page.mjs report.html SCREENSHOTS
//
// Fails when the console says anything, when anything but the file itself is requested, when the page
// is wider than the window, when a link leads nowhere, or when axe finds a breach of WCAG 2.2 AA.
// CHROMIUM names the browser (default: chromium on the PATH's usual place).

import { createRequire } from "node:module";
import { mkdirSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const modules = process.env.NODE_PATH ?? "node_modules";
const require = createRequire(resolve(modules, "x.js"));
const puppeteer = require("puppeteer-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const [report, screenshots] = process.argv.slice(2);
const address = pathToFileURL(resolve(report)).href;
mkdirSync(screenshots, { recursive: true });

const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu"],
});
const problems = [];
const note = (where, what) => problems.push(`${where}: ${what}`);

for (const width of [375, 1440]) {
  for (const scheme of ["light", "dark"]) {
    const where = `${width} px, ${scheme}`;
    const page = await browser.newPage();
    await page.setViewport({ width, height: width === 375 ? 812 : 900 });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    page.on("console", (message) => note(where, `console: ${message.text()}`));
    page.on("pageerror", (error) => note(where, `error: ${error.message}`));
    page.on("request", (request) => {
      if (request.url() !== address) note(where, `requested ${request.url()}`);
    });
    await page.goto(address, { waitUntil: "load" });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    if (wide > width) note(where, `the page is ${wide} px wide`);
    const small = await page.evaluate(() =>
      [...document.querySelectorAll("p, td, th, li, dd, dt, pre")].filter(
        (element) => element.textContent.trim() && parseFloat(getComputedStyle(element).fontSize) < 12,
      ).length,
    );
    if (small) note(where, `${small} texts are smaller than 12 px`);
    const lost = await page.evaluate(() =>
      [...document.querySelectorAll("a")]
        .map((link) => link.getAttribute("href"))
        .filter((href) => !href.startsWith("#") || !document.getElementById(href.slice(1))),
    );
    if (lost.length) note(where, `links that lead nowhere: ${lost.slice(0, 5).join(", ")}`);
    // Folded lists are read too.
    await page.evaluate(() => document.querySelectorAll("details").forEach((d) => (d.open = true)));
    await page.evaluate(axe);
    const { violations, passes } = await page.evaluate(() =>
      axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }),
    );
    for (const violation of violations) {
      const nodes = violation.nodes.map((n) => `${n.target} ${n.any.map((a) => a.message).join("; ")}`);
      note(where, `axe ${violation.id} (${violation.nodes.length}): ${nodes.slice(0, 3).join(" | ")}`);
    }
    console.log(`${where}: ${passes.length} axe rules kept, ${violations.length} broken`);
    await page.evaluate(() => document.querySelectorAll("details").forEach((d) => (d.open = false)));
    await page.screenshot({ path: `${screenshots}/report-${width}-${scheme}.png` });
    await page.close();
  }
}
const page = await browser.newPage();
await page.goto(address, { waitUntil: "load" });
const pdf = await page.pdf({ format: "A4", path: `${screenshots}/report.pdf` });
console.log(`printed on A4: ${pdf.length} bytes`);
await browser.close();
for (const problem of problems) console.error(problem);
console.log(problems.length ? `${problems.length} problems` : "no problem");
process.exit(problems.length ? 1 : 0);
