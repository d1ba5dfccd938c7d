// A list of any length with only as many elements as fit the screen, and a cursor moved by the keyboard.

const SPARE = 8; // rows above and below the screen

export class List {
  /** `render(item, row)` fills a row; `open(item, index)` is called for a chosen item; `near()` when the end of the list
   *  comes into view. `height()`: of every row, in px. */
  constructor(root, { label, render, open, near = () => {}, height }) {
    this.root = root;
    this.render = render;
    this.open = open;
    this.near = near;
    this.height = height;
    this.items = [];
    this.active = -1;
    this.selected = () => false;
    this.skip = () => false; // rows that cannot be chosen
    this.key = (item) => item.id; // identity of an item
    this.rows = new Map(); // index → element
    this.spare = [];
    this.pending = 0;
    root.setAttribute("role", "listbox");
    root.setAttribute("aria-label", label);
    root.tabIndex = 0;
    this.sizer = document.createElement("div");
    this.sizer.className = "sizer";
    this.sizer.setAttribute("role", "presentation");
    root.append(this.sizer);
    root.addEventListener("scroll", () => this.draw(), { passive: true });
    root.addEventListener("keydown", (event) => this.press(event));
    root.addEventListener("click", (event) => {
      const row = event.target.closest("[role=option]");
      // Choose the item that was drawn there; its index may have changed since.
      if (row) this.choose(this.find(row.item, Number(row.dataset.index)));
    });
    root.addEventListener("focus", () => {
      if (this.active < 0 && this.items.length) this.move(this.first());
    });
    new ResizeObserver(() => this.draw(true)).observe(root);
  }

  first() {
    const found = this.items.findIndex((item) => !this.skip(item));
    return Math.max(0, found);
  }

  /** Returns the present index of an item that was at `index`; -1 when it is gone. Items are compared by `key`. */
  find(item, index) {
    const key = this.key(item);
    const same = (other) => other !== undefined && (other === item || (key !== undefined && this.key(other) === key));
    return same(this.items[index]) ? index : this.items.findIndex(same);
  }

  /** Shows these items. `added`: number of new items on top; the visible part does not move. */
  set(items, added = 0) {
    const step = this.height();
    const scrolled = this.root.scrollTop > step / 2;
    const current = this.items[this.active];
    this.items = items;
    // The cursor stays on its item; it is on nothing when that is gone.
    if (current !== undefined) this.active = this.find(current, this.active + added);
    this.sizer.style.height = `${items.length * step}px`;
    if (added && scrolled) this.root.scrollTop += added * step;
    this.draw(true);
  }

  /** Draws in the next frame; `all` redraws unchanged rows as well. */
  draw(all = false) {
    this.redrawAll = this.redrawAll || all;
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      this.paint(this.redrawAll);
      this.redrawAll = false;
    });
  }

  paint(all) {
    const step = this.height();
    const { scrollTop, clientHeight } = this.root;
    if (!clientHeight) return;
    const first = Math.max(0, Math.floor(scrollTop / step) - SPARE);
    const last = Math.min(this.items.length, Math.ceil((scrollTop + clientHeight) / step) + SPARE);
    if (all) this.sizer.style.height = `${this.items.length * step}px`;
    for (const [index, row] of this.rows) {
      if (index < first || index >= last) {
        row.remove();
        this.rows.delete(index);
        this.spare.push(row);
      }
    }
    for (let index = first; index < last; index++) {
      const item = this.items[index];
      let row = this.rows.get(index);
      const fresh = !row;
      if (fresh) {
        row = this.spare.pop() ?? document.createElement("div");
        this.rows.set(index, row);
        this.sizer.append(row);
      }
      if (fresh || all || row.item !== item) {
        row.item = item;
        row.dataset.index = index;
        row.className = "row";
        row.id = `${this.root.id}-${index}`;
        row.setAttribute("role", this.skip(item) ? "presentation" : "option");
        if (!this.skip(item)) {
          row.setAttribute("aria-setsize", this.items.length);
          row.setAttribute("aria-posinset", index + 1);
        }
        row.style.transform = `translateY(${index * step}px)`;
        row.style.height = `${step}px`;
        row.replaceChildren();
        this.render(item, row, index);
      }
      const chosen = this.selected(item);
      row.setAttribute("aria-selected", String(chosen));
      row.classList.toggle("selected", chosen);
      row.classList.toggle("active", index === this.active);
    }
    this.spare.length = Math.min(this.spare.length, 60);
    if (this.active >= 0 && this.rows.has(this.active)) {
      this.root.setAttribute("aria-activedescendant", `${this.root.id}-${this.active}`);
    } else {
      this.root.removeAttribute("aria-activedescendant");
    }
    if (last >= this.items.length - 20) this.near();
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(this.root.clientHeight / this.height()) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: page, PageUp: -page };
    if (event.key in steps) this.move(this.active + steps[event.key], Math.sign(steps[event.key]));
    else if (event.key === "Home") this.move(0, 1);
    else if (event.key === "End") this.move(this.items.length - 1, -1);
    else if (event.key === "Enter" || event.key === " ") this.choose(this.active);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  move(index, direction = 1) {
    let to = Math.max(0, Math.min(this.items.length - 1, index));
    while (this.items[to] && this.skip(this.items[to])) to += direction;
    if (!this.items[to]) return;
    this.active = to;
    const step = this.height();
    const { scrollTop, clientHeight } = this.root;
    if (to * step < scrollTop) this.root.scrollTop = to * step;
    else if ((to + 1) * step > scrollTop + clientHeight) this.root.scrollTop = (to + 1) * step - clientHeight;
    this.draw();
  }

  choose(index) {
    const item = this.items[index];
    if (!item || this.skip(item)) return;
    this.active = index;
    this.open(item, index);
    this.draw();
  }
}
