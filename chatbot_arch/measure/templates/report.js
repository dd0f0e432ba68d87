const given = JSON.parse(document.getElementById("answers").textContent);
const form = document.querySelector("form");
const shown = document.getElementById("answer");

function make(tag, ...children) {
  const element = document.createElement(tag);
  element.append(...children);
  return element;
}

function link(number) {
  const element = make("a", number);
  element.href = `#claim-${number}`;
  return element;
}

function sentence(topic, said) {
  const item = make("li", make("b", `${topic}. `), said.text);
  said.rests_on.forEach(([number, n], place) => {
    item.append(place ? ", " : said.rests_on.length > 1 ? " [claims " : " [claim ");
    item.append(link(number), ` (n = ${n})`);
  });
  item.append(said.rests_on.length ? "]" : "");
  return item;
}

function look(topic) {
  let place = 0; // the last knob changes first
  for (const name of topic.knobs) {
    place = place * given.knobs[name].positions.length + Number(form.elements[name].value);
  }
  return topic.answers[place];
}

function conclude(said) {
  const [split, simulated, untold] = ["microservices", "simulated", "untold"].map((side) =>
    said.filter(([, each]) => each.side === side).map(([topic]) => topic.toLowerCase()).join(", "));
  const answer = given.conclusions[split ? "split" : simulated || untold ? "open" : "one"];
  return answer.replace("{}", split) +
    (simulated && given.conclusions.simulated.replace("{}", simulated)) +
    (untold && given.conclusions.untold.replace("{}", untold));
}

// What a knob has just changed is told below it, since the whole answer may be out of sight.
function tellBelow(knob, said) {
  for (const each of document.querySelectorAll(".now")) each.replaceChildren();
  const below = knob && document.getElementById(`${knob}-now`);
  if (!below) return;
  const read = given.topics.filter((topic) => topic.knobs.includes(knob)).map((topic) => topic.topic);
  below.append(...said.filter(([topic]) => read.includes(topic)).map((each) => sentence(...each)));
}

function update(event) {
  for (const [name, knob] of Object.entries(given.knobs)) {
    const told = document.getElementById(`${name}-told`);
    const text = `${knob.positions[form.elements[name].value]} ${knob.unit}`;
    if (!told) continue; // a list shows its own text
    told.value = text;
    form.elements[name].setAttribute("aria-valuetext", text);
  }
  const said = given.topics.map((topic) => [topic.topic, look(topic)]);
  const parts = [make("p", make("strong", conclude(said)))];
  for (const [side, heading] of Object.entries(given.headings)) {
    const items = said.filter(([, each]) => each.side === side);
    if (!items.length) continue;
    parts.push(make("h3", heading), make("ul", ...items.map((each) => sentence(...each))));
  }
  shown.replaceChildren(...parts);
  tellBelow(event?.target.name, said);
}

addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details:not(.rows)")) each.open = true;
});
form.addEventListener("input", update);
form.addEventListener("submit", (event) => event.preventDefault());
update();
