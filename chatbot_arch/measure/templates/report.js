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

function update() {
  for (const [name, knob] of Object.entries(given.knobs)) {
    const told = document.getElementById(`${name}-told`);
    const text = `${knob.positions[form.elements[name].value]} ${knob.unit}`;
    if (!told) continue; // a list shows its own text
    told.value = text;
    form.elements[name].setAttribute("aria-valuetext", text);
  }
  const said = given.topics.map((topic) => [topic.topic, look(topic)]);
  const split = said.filter(([, each]) => each.side === "microservices");
  const topics = split.map(([topic]) => topic.toLowerCase()).join(", ");
  const short = given.conclusions[split.length ? 0 : 1].replace("{}", topics);
  const parts = [make("p", make("strong", short))];
  for (const [side, heading] of Object.entries(given.headings)) {
    const items = said.filter(([, each]) => each.side === side);
    if (!items.length) continue;
    parts.push(make("h3", heading), make("ul", ...items.map((each) => sentence(...each))));
  }
  shown.replaceChildren(...parts);
}

form.addEventListener("input", update);
form.addEventListener("submit", (event) => event.preventDefault());
update();
