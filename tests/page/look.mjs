// Looks at the page as people do: node look.mjs URL FOLDER CHROMIUM. Prints, as JSON, what each look has seen, and
// leaves its picture in the folder.

import puppeteer from "puppeteer-core";

const [url, folder, executablePath] = process.argv.slice(2);
const LOOKS = [
  { name: "light", scheme: "light", width: 1120, height: 900 },
  { name: "dark", scheme: "dark", width: 1120, height: 900 },
  { name: "phone-light", scheme: "light", width: 360, height: 740 },
  { name: "phone-dark", scheme: "dark", width: 360, height: 740 },
];

// The brightness of a colour such as "rgb(16, 22, 28)", from 0 to 1.
function seen() {
  const bright = (color) => color.match(/\d+(\.\d+)?/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 765;
  const style = getComputedStyle(document.body);
  const visible = [...document.querySelectorAll("section *")].filter((node) => node.getClientRects().length > 0);
  return {
    text: document.body.innerText,
    ground: bright(style.backgroundColor),
    ink: bright(style.color),
    // What sticks out of the screen, to the right or to the left.
    outside: visible
      .filter((node) => node.getBoundingClientRect().right > innerWidth + 1 || node.getBoundingClientRect().left < -1)
      .map((node) => `${node.tagName} ${node.textContent.slice(0, 40)}`),
    servers: [...document.querySelectorAll("svg[role=img]")].map((drawing) => drawing.querySelectorAll("circle").length),
    points: [...document.querySelectorAll(".spark .rates polyline")].map((line) => line.getAttribute("points").trim().split(" ").length),
  };
}

const browser = await puppeteer.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
const faults = [];
const looks = {};
for (const { name, scheme, width, height } of LOOKS) {
  const page = await browser.newPage();
  page.on("pageerror", (error) => faults.push(`${name}: ${error.message}`));
  page.on("console", (message) => message.type() === "error" && faults.push(`${name}: ${message.text()}`));
  page.on("request", (request) => request.url().startsWith(url) || faults.push(`${name}: asks for ${request.url()}`));
  await page.setViewport({ width, height });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.goto(url);
  // Two looks are one difference, three a line.
  await page.waitForFunction(() => (document.querySelector(".spark .rates polyline")?.getAttribute("points") || "").trim().split(" ").length > 2, { timeout: 20000 });
  looks[name] = await page.evaluate(seen);
  await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
  await page.close();
}
await browser.close();
console.log(JSON.stringify({ looks, faults }));
