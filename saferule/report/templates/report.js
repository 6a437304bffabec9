// Makes the tables sortable and searchable with DataTables, which `datatables.js` brings. Without it they are read as they are.
addEventListener("DOMContentLoaded", async () => {
  const tables = document.querySelectorAll("table.sortable"), paged = [];
  const { default: DataTable, set_or_remove_dark_class: followTheme } = await dataTables;
  followTheme();
  for (const table of tables) {
    const many = table.tBodies[0].rows.length > 100;
    const made = new DataTable(table, {
      order: [],
      autoWidth: false,
      paging: many,
      pageLength: 100,
      layout: { topStart: table.tBodies[0].rows.length > 5 ? "search" : null, topEnd: null, bottomStart: many ? "info" : null, bottomEnd: many ? "paging" : null },
      language: { search: "Filter:", searchPlaceholder: "words of a row" },
    });
    if (many) paged.push(made);
    const region = table.closest(".scroll"), inner = table.closest(".dt-layout-table") ?? table.parentElement;
    for (const name of ["role", "aria-label", "tabindex"]) {
      inner.setAttribute(name, region.getAttribute(name));
      region.removeAttribute(name);
    }
  }
  // What is printed is whole: every row of a table, and what is folded away.
  addEventListener("beforeprint", () => {
    for (const each of paged) each.page.len(-1).draw(false);
    for (const each of document.querySelectorAll("details")) each.open = true;
  });
  addEventListener("afterprint", () => paged.forEach((each) => each.page.len(100).draw(false)));
  document.documentElement.classList.add("ready");
});
