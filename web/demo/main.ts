/** Films that the visitor liked in, films to see next out. */

import { type Id, WorkerRanker } from "ranklet";

interface Film {
  item: Id;
  title: string;
}

const ranker = await WorkerRanker.load("bundle/");
const history: Film[] = JSON.parse(localStorage.getItem("history") ?? "[]") as Film[];
const element = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;
const [search, genre] = [element<HTMLInputElement>("search"), element<HTMLSelectElement>("genre")];
let asked = 0;

function list(id: string, entries: { label: string; note?: string; act: () => void; name?: string }[]): void {
  const rows = entries.map(({ label, note, act, name }) => {
    const button = document.createElement("button");
    const title = document.createElement("strong");
    title.textContent = label;
    button.append(title);
    if (note) button.append(Object.assign(document.createElement("small"), { textContent: note }));
    if (name) button.setAttribute("aria-label", name);
    button.onclick = act;
    const row = document.createElement("li");
    row.append(button);
    return row;
  });
  element(id).replaceChildren(...rows);
}

function add(film: Film): void {
  if (!history.some(({ item }) => item === film.item)) history.push(film);
  search.value = "";
  list("found", []);
  void show();
}

/** Say which events an item is there for. */
function reason(titles: string[], drops: number[]): string {
  const helped = titles
    .map((title, event) => ({ title, drop: drops[event]! }))
    .filter(({ drop }) => drop > 0.05)
    .sort((a, b) => b.drop - a.drop);
  return helped.length ? `because of ${helped.slice(0, 2).map(({ title }) => title).join(" and ")}` : "";
}

async function show(): Promise<void> {
  const number = ++asked;
  localStorage.setItem("history", JSON.stringify(history));
  list(
    "history",
    history.map((film, place) => ({
      label: `${film.title} ×`,
      name: `Remove ${film.title}`,
      act: () => {
        history.splice(place, 1);
        void show();
        search.focus();
      },
    })),
  );
  element("nothing").hidden = history.length > 0;
  const { items, titles, explanation } = await ranker.rank(
    history.map(({ item }) => item),
    { explain: true, ...(genre.value ? { where: { genres: genre.value } } : {}) },
  );
  if (number !== asked) return; // another question was asked meanwhile
  list(
    "answers",
    titles.map((label, place) => ({
      label,
      note: explanation && reason(explanation.titles, explanation.drops[place]!),
      act: () => add({ item: items[place]!, title: label }),
    })),
  );
}

/** Print how long a ranking of 50 events takes, through the worker. */
async function measure(first: number): Promise<void> {
  const films = await ranker.find("", 400);
  const times: number[] = [];
  for (let turn = 0; turn < 250; turn++) {
    const events = films.slice(turn, turn + 50).map(({ item }) => item);
    const begin = performance.now();
    await ranker.rank(events);
    times.push(performance.now() - begin);
  }
  const median = times.slice(-50).sort((a, b) => a - b)[25]!; // by then the browser has compiled it
  Object.assign(element("times").dataset, { first, median });
  element("times").textContent =
    `First answer after ${first.toFixed(0)} ms; after 50 films an answer takes ${median.toFixed(1)} ms (median of the last 50 of 250).`;
}

search.oninput = async () => {
  const text = search.value;
  const films = text.trim() ? await ranker.find(text, 8) : [];
  if (text !== search.value) return;
  list("found", films.map((film) => ({ label: film.title, name: `Add ${film.title}`, act: () => add(film) })));
};
search.onkeydown = ({ key }) => {
  if (key === "Enter") element("found").querySelector("button")?.click();
};
genre.onchange = () => void show();

await show();
const first = performance.now();
for (const name of await ranker.values("genres").catch(() => [])) genre.add(new Option(name));
await measure(first);
if ("serviceWorker" in navigator) void navigator.serviceWorker.register("offline.js");
